"""The main flow: from a checkpoint and a request to forget, to an edited checkpoint and what it still knows."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from chip.checkpoint.folder import files_in, staged
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.model_card import CARD, Figure, write_card
from chip.checkpoint.receipt import RECEIPT, Edit, Receipt, write_receipt
from chip.checkpoint.writer import check_output, check_written, copy_patched, read_back
from chip.data.hierarchy import Hierarchy
from chip.data.readers import find_records, read_records
from chip.data.request import ForgetRequest
from chip.distributed import distributed_context
from chip.errors import InputError
from chip.evaluation.summary import GroupResult, summarize
from chip.methods import Method, Shielded
from chip.methods.apply import check_removed, compute_updates, default_modules
from chip.methods.search import MAX_RETAIN_DROP, Choice
from chip.model.batching.batch_size import BatchSize
from chip.model.model_loader import model_loader
from chip.model.offload import DeviceMap, MaxMemory
from chip.model.scoring import score_records
from chip.model.target_modules import TargetModule
from chip.progress import ProgressCallback, silent

PROSE = {".md", ".txt", ".log", ".csv", ".tsv", ".jsonl"}
"""Files of a checkpoint's folder in which people write about people."""


@dataclass(frozen=True)
class EditReport:
    """What an edit did, measured on the checkpoint that was written."""

    method: str
    settings: Mapping[str, Any]
    label: str | None
    output: str | None
    """The written folder; None for a dry run."""
    seconds: float
    shares_images: bool
    """Whether questions about one image ran it once together, or each on its own, as in families where it sees them."""
    relative_change: Mapping[str, float]
    """Name on disk of each changed tensor -> ‖W′ − W‖ / ‖W‖ (Frobenius), after rounding."""
    remaining: Mapping[str, float]
    """Name on disk -> ‖QᵀW′‖ / ‖QᵀW‖ as written, where the method takes the directions Q out of W."""
    groups: Mapping[str, Mapping[str, GroupResult]]
    choice: Choice | None = None
    """How the shield was found, where nobody gave one."""

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "label": self.label,
            "output": self.output,
            "seconds": self.seconds,
            "shares_images": self.shares_images,
            "changed_tensors": sorted(self.relative_change),
            "relative_change": dict(self.relative_change),
            "remaining": dict(self.remaining),
            "choice": None if self.choice is None else self.choice.to_json(),
            "groups": {
                group: {split: result.to_json() for split, result in results.items()}
                for group, results in self.groups.items()
            },
        }


def edit(
    checkpoint: Path | str,
    forget: Sequence[str],
    *,
    records: Path | str | None = None,
    out: Path | str | None = None,
    label: str | None = None,
    method: Method | None = None,
    target_modules: Sequence[str] | None = None,
    layers: str | None = None,
    max_retain_drop: float = MAX_RETAIN_DROP,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    batch_size: int | None = None,
    link_unchanged: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: ProgressCallback = silent,
) -> EditReport:
    """Make a model forget some nodes, and write it as a new checkpoint.

    Args:
        checkpoint: folder in the Hugging Face format, safetensors; never written to.
        forget: ids or paths of institutions, patients, studies or sections.
        records: .jsonl or .parquet; by default those beside the checkpoint, else `CHIP_RECORDS`.
        out: folder to write; by default the checkpoint's name with `-edited`, beside it.
        label: what the receipt and the model card call the request. It must not name what is forgotten.
        operator: method and settings; by default `Shielded()`.
        sites: kinds of site to edit; by default the operator's.
        layers: which layers of the text model, `22-27`, `50%-100%` or `all`; by default the operator's share.
        tolerance: where the shield is chosen, what retained records may lose of their answers' probability.
        device: by default the best there is.
        device_map: for a model larger than a device: `auto`, or as in transformers. What does not fit lies on the host,
            then stays on the disk.
        max_memory: what a device map may take of each device and of the host; by default what is free.
        batch_size: records per forward pass; changes the time, never the result.
        link_unchanged: shards that do not change become hard links to the source's; who writes to one writes to both.
        dry_run: compute the edit, and write nothing.

    Raises:
        InputError: the request cannot be met as it stands. Nothing has been written.
        RunError: the run failed. No output is left.
    """
    start = time.monotonic()
    source = Checkpoint.open(Path(checkpoint))
    output = _beside(source.folder) if out is None else Path(out)
    method = method or Shielded()
    request = _read_case(source, forget, records, label)
    if not dry_run:
        check_output(source, output, overwrite=overwrite, link_unchanged=link_unchanged)
    with distributed_context() as distributed, model_loader(distributed, device, device_map, max_memory) as load:
        progress, size = progress if distributed.is_main_process else silent, BatchSize(batch_size)
        ask = partial(
            score_records, records=request.hierarchy.records, size=size, progress=progress, distributed=distributed
        )
        with staged(output, overwrite) if distributed.is_main_process and not dry_run else nullcontext() as folder:
            vlm = load(source.folder)
            chosen = default_modules(vlm, method, target_modules, layers)
            before = ask(vlm, what="asking before")
            patch = compute_updates(vlm, source, method, request, chosen, size, progress, distributed, max_retain_drop)
            remaining, after = {}, None
            if folder is not None:
                copy_patched(source, folder, patch.tensors, link_unchanged=link_unchanged, progress=progress)
                check_written(source, folder, patch.tensors)
                remaining = check_removed(source, folder, patch.removed)
            if not dry_run:
                del vlm  # one model at a time: what is judged is what was written
                patch.tensors.clear()
                gc.collect()  # a spread model refers to itself
                after = ask(load(Path(distributed.broadcast_object(str(folder)))), what="asking after")
            report = EditReport(
                method=method.name,
                settings=_settings(method, chosen, patch.choice),
                label=label,
                output=None if dry_run else str(output),
                seconds=time.monotonic() - start,
                shares_images=patch.shares_images,
                relative_change=patch.relative_change,
                remaining=remaining,
                groups=summarize(request, before, after),
                choice=patch.choice,
            )
            if folder is not None:
                _sign(source, folder, report, progress)
        distributed.broadcast_object(None)  # the others wait, so that all fail if the last step does
        return report


def _settings(method: Method, target_modules: Sequence[TargetModule], choice: Choice | None) -> dict[str, Any]:
    layers = [module.layer for module in target_modules if module.layer is not None]
    return {
        **asdict(method),
        **(
            {} if choice is None else {"retain_weight": choice.retain_weight, "max_retain_drop": choice.max_retain_drop}
        ),
        "target_modules": sorted({module.kind for module in target_modules}),
        "layers": f"{min(layers)}-{max(layers)}" if layers else "none",
    }


def _beside(folder: Path) -> Path:
    """Where the output goes if nobody says."""
    if folder.absolute().parent.name == "snapshots":
        raise InputError(f"{folder}: in the hub's cache, which chip does not write to; say where with --out")
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-edited")


def _read_case(
    source: Checkpoint, forget: Sequence[str], records: Path | str | None, label: str | None
) -> ForgetRequest:
    """Who is to be forgotten, among whom; refused where the output would tell of it."""
    file = find_records(source.folder, None if records is None else Path(records))
    hierarchy = Hierarchy(read_records(file))
    request = ForgetRequest.of(hierarchy, forget)
    images = {record.image for record in hierarchy.records if isinstance(record.image, Path)}
    for path in (file, *sorted(images)):
        if path.resolve().is_relative_to(source.folder.resolve()):
            raise InputError(f"{path}: lies in the checkpoint, and would be copied with it; move it elsewhere")
    for target in request.partition.targets:
        named = re.compile(rf"(?<!\w){re.escape(target.id)}(?!\w)")
        if label is not None and named.search(label):
            raise InputError(f"--label {label}: names {target.id}, which is to be forgotten; choose another")
        for path, relative in files_in(source.folder):
            prose = path.suffix in PROSE and not target.id.isdigit()  # a number stands for many things
            if prose and named.search(path.read_text(encoding="utf-8", errors="replace")):
                raise InputError(f"{path}: names {target.id}, and {relative} would be copied; take that out of it")
    _check_trained(request)
    return request


def _sign(source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> None:
    """Say in the written folder how it was made, read all of it back, and leave the receipt."""
    write_card(
        folder,
        method=report.method,
        settings=report.settings,
        label=report.label,
        changed_tensors=len(report.relative_change),
        figures=[
            Figure(group, split, result.exact_match.before, result.exact_match.after)
            for group, results in report.groups.items()
            for split, result in results.items()
            if result.exact_match.after is not None
        ],
    )
    (folder / RECEIPT).unlink(missing_ok=True)  # of an edit before, which goes into the new one
    found = read_back(source, folder, report.relative_change.keys(), own={CARD, RECEIPT}, progress=progress)
    what = Edit(report.method, report.settings, None, report.relative_change, report.remaining, report.label)
    write_receipt(folder, Receipt.of(source, what, found))


def _check_trained(request: ForgetRequest) -> None:
    """An edit learns from the trained wordings only: the held-out ones are there to judge it."""
    split, records = request.partition, request.hierarchy.records
    for what, indices in (("target", split.forget), ("retained", split.retained)):
        if all(records[i].held_out for i in indices):
            raise InputError(f"no {what} record has split 'train'; the edit has nothing to go by, add some")
