"""The main flow: from a checkpoint and a request to forget, to an edited checkpoint and what it still knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chip.checkpoint.card import CARD, Figure, write_card
from chip.checkpoint.files import staged
from chip.checkpoint.keys import disk_names
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.patch import check_output, check_written, copy_patched, read_back, round_once
from chip.checkpoint.receipt import RECEIPT, Edit, Receipt, write_receipt
from chip.errors import InputError, RunError
from chip.evaluation.metrics import BeforeAfter, GroupResult, chances, mean
from chip.hierarchy import Hierarchy
from chip.operators import Operator, Shielded
from chip.operators.base import Case, Removed, Update
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
    """What an edit changes on disk; everything by the tensor's name there."""

    tensors: dict[str, Tensor]
    """What the tensor becomes; values that its stored dtype has. Mostly the edited model's own parameters, so that
    nothing is held twice."""
    relative_change: dict[str, float]
    """‖W′ − W‖ / ‖W‖ (Frobenius), after rounding."""
    removed: dict[str, tuple[Site, Removed]]
    """What must be gone from the written tensor, where the operator takes directions out of it."""


@dataclass(frozen=True)
class EditReport:
    """What an edit did, measured on the checkpoint that was written."""

    method: str
    settings: Mapping[str, Any]
    label: str | None
    output: str | None
    """The written folder; None for a dry run."""
    seconds: float
    relative_change: Mapping[str, float]
    """Name on disk of each changed tensor -> ‖W′ − W‖ / ‖W‖ (Frobenius), after rounding."""
    remaining: Mapping[str, float]
    """Name on disk -> ‖QᵀW′‖ / ‖QᵀW‖ as written, where the method takes the directions Q out of W."""
    groups: Mapping[str, Mapping[str, GroupResult]]

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "label": self.label,
            "output": self.output,
            "seconds": self.seconds,
            "changed_tensors": sorted(self.relative_change),
            "relative_change": dict(self.relative_change),
            "remaining": dict(self.remaining),
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
    label: str | None = None,
    operator: Operator | None = None,
    sites: Sequence[str] | None = None,
    layers: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    link_unchanged: bool = False,
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
        label: what the receipt and the model card call the request. It must not name what is forgotten.
        operator: method and settings; by default `Shielded()`.
        sites: kinds of site to edit; by default the operator's.
        layers: which layers of the text model, `22-27`, `50%-100%` or `all`; by default the operator's share.
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
    operator = operator or Shielded()
    case = _read_case(source, forget, records, label)
    if not dry_run:
        check_output(source, output, overwrite=overwrite, link_unchanged=link_unchanged)
    with nullcontext() if dry_run else staged(output, overwrite) as folder:
        vlm = load_vlm(source.folder, device)
        chosen = select_sites(vlm, operator, sites, layers)
        everyone = case.hierarchy.records
        before = ask_all(vlm, everyone, batch_size, progress, "asking before")
        patch = compute_patch(vlm, source, operator, case, chosen, batch_size, progress)
        remaining, after = {}, None
        if folder is not None:
            with progress("writing", 1) as advance:
                copy_patched(source, folder, patch.tensors, link_unchanged=link_unchanged)
                check_written(source, folder, patch.tensors)
                remaining = check_removed(source, folder, patch.removed)
                advance(1)
            del vlm  # one model at a time: what is judged is what was written
            patch.tensors.clear()
            after = ask_all(load_vlm(folder, device), everyone, batch_size, progress, "asking after")
        report = EditReport(
            method=operator.name,
            settings={
                **asdict(operator),
                "sites": sorted({site.kind for site in chosen}),
                "layers": _layers_of(chosen),
            },
            label=label,
            output=None if dry_run else str(output),
            seconds=time.monotonic() - start,
            relative_change=patch.relative_change,
            remaining=remaining,
            groups=summarise(case, before, after),
        )
        if folder is not None:
            with progress("reading back", 1) as advance:
                _sign(source, folder, report)
                advance(1)
    return report


def _beside(folder: Path) -> Path:
    """Where the output goes if nobody says."""
    if folder.absolute().parent.name == "snapshots":
        raise InputError(f"{folder}: in the hub's cache, which chip does not write to; say where with --out")
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-edited")


def _read_case(source: Checkpoint, forget: Sequence[str], records: Path | str | None, label: str | None) -> Case:
    """Who is to be forgotten, among whom; refused where the output would tell of it."""
    file = find_records(source.folder, None if records is None else Path(records))
    hierarchy = Hierarchy(read_records(file))
    case = Case(hierarchy, hierarchy.split([hierarchy.find(name) for name in forget]))
    inside = source.folder.resolve()
    for path in (file, *(record.image for record in hierarchy.records if isinstance(record.image, Path))):
        if path.resolve().is_relative_to(inside):
            raise InputError(f"{path}: lies in the checkpoint, and would be copied with it; move it elsewhere")
    for target in case.split.targets:
        if label is not None and target.id in label:
            raise InputError(f"--label {label}: names {target.id}, which is to be forgotten; choose another")
    _check_trained(case)
    return case


def _sign(source: Checkpoint, folder: Path, report: EditReport) -> None:
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
    found = read_back(source, folder, report.relative_change.keys(), own={CARD, RECEIPT})
    what = Edit(report.method, report.settings, None, report.relative_change, report.remaining, report.label)
    write_receipt(folder, Receipt.of(source, what, found))


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
    parameters = {site: _parameters(site) for site in sites}
    disk = disk_names(source, [name for names in parameters.values() for name in names.values()])
    records = case.hierarchy.records
    trained = [index for index, record in enumerate(records) if not record.held_out]
    flow = Flow(vlm, list(vlm.prompts.batches(records, trained, batch_size)), records)
    stages = in_data_order(sites) if operator.data_order else at_once(sites)
    patch = Patch({}, {}, {})
    with progress("editing", len(stages) * len(trained)) as advance:
        for stage in stages:
            statistics = {site: _statistics(vlm, operator, case, site) for site in stage.sites}
            flow.observe(stage, {site.name: each.update for site, each in statistics.items()}, advance)
            for site in stage.sites:
                update = _solve(vlm, operator, site, statistics[site])
                if update is None:
                    continue
                for part, name in parameters[site].items():
                    new = getattr(update, part)
                    changed = new is not None and _apply(vlm, source, site, name, disk[name], new, patch)
                    if changed and update.removed is not None:
                        patch.removed[disk[name]] = site, update.removed
    return patch


def _parameters(site: Site) -> dict[str, str]:
    """Part of an update -> the model's parameter that it changes."""
    return {"weight": site.weight_name, **({"bias": site.bias_name} if site.bias_name else {})}


def _statistics(vlm: VLM, operator: Operator, case: Case, site: Site) -> Any:
    d_out, d_in = site.weight(vlm.model).shape
    return operator.statistics(case, d_in, d_out, vlm.device)


def _solve(vlm: VLM, operator: Operator, site: Site, statistics: Any) -> Update | None:
    bias = None if site.bias_name is None else vlm.model.get_parameter(site.bias_name)
    try:
        return operator.update(site.weight(vlm.model), bias, statistics)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise RunError(f"{site.name}: no trustworthy solution ({error}); a larger --ridge mends it") from error


def _apply(vlm: VLM, source: Checkpoint, site: Site, name: str, disk_name: str, new: Tensor, patch: Patch) -> bool:
    """Give a parameter its new value, as its stored dtype has it; whether that is another than before."""
    parameter = vlm.model.get_parameter(name)
    rounded = round_once(as_stored(site, new), source.entries[disk_name].torch_dtype)
    old = parameter.to(new.dtype)
    if torch.equal(rounded.to(parameter.dtype), parameter):
        return False
    patch.relative_change[disk_name] = float(torch.linalg.norm(rounded.to(new.dtype) - old) / torch.linalg.norm(old))
    parameter.copy_(rounded)
    exact = torch.equal(parameter.to(rounded.dtype), rounded)  # not where the model computes in a narrower dtype
    patch.tensors[disk_name] = parameter.detach() if exact else rounded.cpu()
    return True


def as_stored(site: Site, parameter: Tensor) -> Tensor:
    """From (d_out, d_in) to the parameter's own orientation, and back."""
    return parameter.T if site.bare and parameter.dim() == 2 else parameter


def check_removed(source: Checkpoint, folder: Path, removed: Mapping[str, tuple[Site, Removed]]) -> dict[str, float]:
    """Look in the written tensors for the directions that an operator has taken out: ‖QᵀW′‖ / ‖QᵀW‖ by name on disk.

    Raises:
        RunError: more is left of them than rounding to the stored dtype can leave, u ‖W′_S‖ with the unit roundoff u.
    """
    written, remaining = Checkpoint.open(folder), {}
    for name, (site, what) in removed.items():
        before, after = (as_stored(site, checkpoint.read(name)) for checkpoint in (source, written))
        left = what.left_in(after)
        roundoff = torch.finfo(after.dtype).eps / 2
        if left > 2 * roundoff * float(torch.linalg.norm(after.double())):  # twice: the projection is rounded as well
            raise RunError(f"tensor {name!r}: the removed directions are still in what was written; check the disk")
        remaining[name] = left / what.left_in(before)
    return remaining


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
