"""The main flow: from a checkpoint and a request to forget, to an edited checkpoint and what it still knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chip.checkpoint.keys import disk_names
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.patch import check_output, write_patched
from chip.errors import InputError, RunError
from chip.evaluation.metrics import BeforeAfter, GroupResult, chances, mean
from chip.hierarchy import Hierarchy, Split
from chip.operators import Operator, Shielded
from chip.operators.base import Case, Update
from chip.records import Record, find_records, read_records
from chip.vlm.flow import Flow
from chip.vlm.loading import VLM, load_vlm
from chip.vlm.prompts import Prompts
from chip.vlm.scoring import Scores, score
from chip.vlm.sites import Site, by_place, find_sites, in_data_order

Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Called with what is being done and in how many steps; gives what to call after each step."""

SPLITS = {"trained": False, "rephrased": True}
"""Name in reports -> whether those records are held out."""


@dataclass(frozen=True)
class EditReport:
    """What an edit did, measured on the checkpoint that was written."""

    method: str
    settings: Mapping[str, Any]
    output: str | None
    """The written folder; None for a dry run."""
    seconds: float
    relative_change: Mapping[str, float]
    """Name on disk of each changed tensor -> ‖W′ − W‖ / ‖W‖ (Frobenius), after rounding."""
    groups: Mapping[str, Mapping[str, GroupResult]]

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "output": self.output,
            "seconds": self.seconds,
            "changed_tensors": sorted(self.relative_change),
            "relative_change": dict(self.relative_change),
            "groups": {
                group: {split: result.to_json() for split, result in results.items()}
                for group, results in self.groups.items()
            },
        }


@contextmanager
def silent(_: str, __: int) -> Iterator[Callable[[], None]]:
    """Progress that nobody watches."""
    yield lambda: None


def edit(
    checkpoint: Path | str,
    forget: Sequence[str],
    *,
    records: Path | str | None = None,
    out: Path | str | None = None,
    operator: Operator | None = None,
    sites: Sequence[str] | None = None,
    layers: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> EditReport:
    """Make a model forget some nodes, and write it as a new checkpoint.

    Args:
        checkpoint: folder in the Hugging Face format, safetensors; never written to.
        forget: ids or paths of institutions, patients, studies or sections.
        records: .jsonl or .parquet; by default those beside the checkpoint, else `CHIP_RECORDS`.
        out: folder to write; by default the checkpoint's name with `-edited`, beside it.
        operator: method and settings; by default `Shielded()`.
        sites: kinds of site to edit; by default the operator's.
        layers: which layers of the text model, `22-27`, `50%-100%` or `all`; by default the operator's share.
        batch_size: records per forward pass; changes the time, never the result.
        dry_run: compute the edit, and write nothing.

    Raises:
        InputError: the request cannot be met as it stands. Nothing has been written.
        RunError: the run failed. No output is left.
    """
    start = time.monotonic()
    source = Checkpoint.open(Path(checkpoint))
    output = Path(out) if out is not None else source.folder.with_name(f"{source.folder.name}-edited")
    if not dry_run:
        check_output(source, output, overwrite)
    operator = operator or Shielded()

    hierarchy = Hierarchy(read_records(find_records(source.folder, Path(records) if records is not None else None)))
    split = hierarchy.split([hierarchy.find(name) for name in forget])
    vlm = load_vlm(source.folder, device)
    chosen = choose_sites(vlm, operator, sites, layers)
    names = disk_names(source, [f"{site.name}.weight" for site in chosen])
    
    before = score_all(vlm, hierarchy.records, batch_size, progress, "asking before")
    patch = compute_patch(vlm, source, operator, Case(hierarchy, split), chosen, batch_size, progress)
    changes = {}
    after = None
    if not dry_run:
        write_patched(source, output, patch.tensors, overwrite=overwrite)
        del vlm
        after = score_all(load_vlm(output, device), hierarchy.records, batch_size, progress, "asking after")
    return EditReport()
