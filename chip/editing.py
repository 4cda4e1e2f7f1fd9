"""The main flow: from a checkpoint and a request to forget, to an edited checkpoint and what it still knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chip.checkpoint.keys import disk_names
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.patch import check_output, round_once, write_patched
from chip.errors import InputError, RunError
from chip.evaluation.metrics import BeforeAfter, GroupResult, chances, mean
from chip.hierarchy import Hierarchy
from chip.operators import Operator, Shielded
from chip.operators.base import Case, Update
from chip.records import Record, find_records, read_records
from chip.vlm.flow import Flow
from chip.vlm.loading import VLM, load_vlm
from chip.vlm.scoring import Scores, score
from chip.vlm.sites import Site, at_once, choose_sites, in_data_order, layer_range, parse_layers

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Called with what is being done and in how many steps; gives what to call with the number of steps just done."""

SPLITS = {"trained": False, "rephrased": True}
"""Name in reports -> whether those records are held out."""


@dataclass(frozen=True)
class Patch:
    """What an edit changes on disk."""

    tensors: dict[str, Tensor]
    """Name on disk -> new value, on the CPU, in the dtype it is stored in."""
    relative_change: dict[str, float]
    """Name on disk -> ‖W′ − W‖ / ‖W‖ (Frobenius), after rounding."""


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
def silent(_: str, __: int) -> Iterator[Callable[[int], None]]:
    """Progress that nobody watches."""
    yield lambda _: None


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

    file = find_records(source.folder, None if records is None else Path(records))
    hierarchy = Hierarchy(read_records(file))
    case = Case(hierarchy, hierarchy.split([hierarchy.find(name) for name in forget]))
    _check_trained(case)

    vlm = load_vlm(source.folder, device)
    chosen = select_sites(vlm, operator, sites, layers)
    before = ask_all(vlm, hierarchy.records, batch_size, progress, "asking before")
    patch = compute_patch(vlm, source, operator, case, chosen, batch_size, progress)
    del vlm  # one model at a time: what is judged is what was written

    after = None
    if not dry_run:
        write_patched(source, output, patch.tensors, overwrite=overwrite)
        after = ask_all(load_vlm(output, device), hierarchy.records, batch_size, progress, "asking after")
    return EditReport(
        method=operator.name,
        settings={
            **asdict(operator),
            "sites": sorted({site.kind for site in chosen}),
            "layers": _layers_of(chosen),
        },
        output=None if dry_run else str(output),
        seconds=time.monotonic() - start,
        relative_change=patch.relative_change,
        groups=summarise(case, before, after),
    )


def _check_trained(case: Case) -> None:
    """An edit learns from the trained wordings only: the held-out ones are there to judge it."""
    split, records = case.split, case.hierarchy.records
    for what, indices in (("target", split.forget), ("retained", (*split.siblings, *split.rest))):
        if all(records[i].held_out for i in indices):
            raise InputError(f"no {what} record has split 'train'; the edit has nothing to go by, add some")


def select_sites(
    vlm: VLM, operator: Operator, kinds: Sequence[str] | None = None, layers: str | None = None
) -> list[Site]:
    """The sites to edit, in the order of data: as asked for, else the operator's own choice for this depth."""
    depth = len(vlm.layers)
    span = layer_range(operator.layers, depth) if layers is None else parse_layers(layers, depth)
    return choose_sites(vlm.model, operator.sites if kinds is None else kinds, span)


def ask_all(
    vlm: VLM,
    records: Sequence[Record],
    batch_size: int | None = None,
    progress: Progress = silent,
    what: str = "asking",
) -> Scores:
    """What the model answers to every record."""
    with progress(what, len(records)) as advance:
        return score(vlm, vlm.prompts.batches(records, range(len(records)), batch_size), len(records), advance)


def compute_patch(
    vlm: VLM,
    source: Checkpoint,
    operator: Operator,
    case: Case,
    sites: Sequence[Site],
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Patch:
    """Run the trained records through the model, and let the operator edit it site by site.

    The model in memory is edited too, with the rounded weights: what comes later sees what will be written.
    """
    parameters = {site: _parameters(vlm, site) for site in sites}
    disk = disk_names(source, [name for names in parameters.values() for name in names])
    records = case.hierarchy.records
    trained = [index for index, record in enumerate(records) if not record.held_out]
    flow = Flow(vlm, list(vlm.prompts.batches(records, trained, batch_size)), records)
    stages = in_data_order(sites) if operator.data_order else at_once(sites)
    patch = Patch({}, {})
    with progress("editing", len(stages) * len(trained)) as advance:
        for stage in stages:
            statistics = {site: _statistics(vlm, operator, case, site) for site in stage.sites}
            flow.observe(stage, {site.name: each.update for site, each in statistics.items()}, advance)
            for site in stage.sites:
                update = _solve(vlm, operator, site, statistics[site])
                for name, new in _changed(update, parameters[site]):
                    _apply(vlm, source, name, disk[name], new, patch)
    return patch


def _parameters(vlm: VLM, site: Site) -> list[str]:
    """Names of the site's weight and, where it has one, its bias."""
    return [f"{site.name}.{name}" for name, _ in vlm.model.get_submodule(site.name).named_parameters()]


def _statistics(vlm: VLM, operator: Operator, case: Case, site: Site) -> Any:
    d_out, d_in = vlm.model.get_submodule(site.name).weight.shape
    return operator.statistics(case, d_in, d_out, vlm.device)


def _solve(vlm: VLM, operator: Operator, site: Site, statistics: Any) -> Update | None:
    module = vlm.model.get_submodule(site.name)
    try:
        return operator.update(module.weight, module.bias, statistics)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise RunError(f"{site.name}: no trustworthy solution ({error}); a larger --ridge mends it") from error


def _changed(update: Update | None, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Parameter name and new value, for those the update changes."""
    for name in names:
        new = getattr(update, name.rpartition(".")[2], None)
        if new is not None:
            yield name, new


def _apply(vlm: VLM, source: Checkpoint, name: str, disk_name: str, new: Tensor, patch: Patch) -> None:
    parameter = vlm.model.get_parameter(name)
    rounded = round_once(new, source.entries[disk_name].torch_dtype)
    old = parameter.to(new.dtype)
    if torch.equal(rounded.to(parameter.dtype), parameter):
        return
    patch.tensors[disk_name] = rounded.cpu()
    patch.relative_change[disk_name] = float(torch.linalg.norm(rounded.to(new.dtype) - old) / torch.linalg.norm(old))
    parameter.copy_(rounded)


def summarise(case: Case, before: Scores, after: Scores | None) -> dict[str, dict[str, GroupResult]]:
    """The scores as means by group (target, siblings, rest) and by whether the wording was trained."""
    chance = chances(case.hierarchy, case.split)
    result: dict[str, dict[str, GroupResult]] = {}
    for group, indices in case.split.groups.items():
        result[group] = {}
        for name, held_out in SPLITS.items():
            chosen = [i for i in indices if case.hierarchy.records[i].held_out == held_out]
            if chosen:
                measure = partial(_before_after, chosen, before, after)
                result[group][name] = GroupResult(
                    len(chosen), mean(chance, chosen), measure("exact_match"), measure("answer_probability")
                )
    return result


def _before_after(chosen: Sequence[int], before: Scores, after: Scores | None, measure: str) -> BeforeAfter:
    return BeforeAfter(
        mean(getattr(before, measure), chosen),
        None if after is None else mean(getattr(after, measure), chosen),
    )


def _layers_of(sites: Sequence[Site]) -> str:
    layers = [site.layer for site in sites if site.layer is not None]
    return f"{min(layers)}-{max(layers)}" if layers else "none"
