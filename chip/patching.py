"""From records to new weights: every record through the model, and the operator's solution site by site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from chip.checkpoint.keys import disk_names
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.patch import round_once
from chip.choosing import SHIELDS, TOLERANCE, Choice, Questions, choose, set_apart
from chip.errors import RunError
from chip.kernels.gram import wide_dtype
from chip.moments import SecondMoment, Statistics
from chip.operators.base import Case, Operator, Removed
from chip.operators.shielded import AUTO, Shielded, ShieldedStatistics
from chip.processes import Processes
from chip.progress import Progress, silent
from chip.records import Record
from chip.vlm.batch_size import BatchSize
from chip.vlm.flow import Flow
from chip.vlm.loading import VLM
from chip.vlm.restoring import restoring
from chip.vlm.scoring import Scores, ask_all
from chip.vlm.shelf import room_for
from chip.vlm.sites import Site, Stage, at_once, choose_sites, in_data_order, layer_range, parse_layers

Seen: TypeAlias = tuple[Site, Any]
"""A site, and its statistics as the operator asked for them."""
Solved: TypeAlias = tuple[dict[str, Tensor], Removed | None]
"""New values by the model's name, and what must be gone from them."""


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
    shares_images: bool = True
    """Whether questions about one image ran it once together."""
    choice: Choice | None = None
    """How the shield was found, where nobody gave one."""


def select_sites(
    vlm: VLM, operator: Operator, kinds: Sequence[str] | None = None, layers: str | None = None
) -> list[Site]:
    """The sites to edit, in the order of data: as asked for, else the operator's own choice for this depth."""
    depth = len(vlm.layers)
    span = layer_range(operator.layers, depth) if layers is None else parse_layers(layers, depth)
    return choose_sites(vlm.model, operator.sites if kinds is None else kinds, span)


def compute_patch(
    vlm: VLM,
    source: Checkpoint,
    operator: Operator,
    case: Case,
    sites: Sequence[Site],
    size: BatchSize | None = None,
    progress: Progress = silent,
    processes: Processes | None = None,
    tolerance: float = TOLERANCE,
) -> Patch:
    """Run the trained records through the model, and let the operator edit it site by site.

    The model in memory is edited too, with the rounded weights: what is seen later is what will be written.

    Args:
        tolerance: what retained records may lose of their answers' probability, where the shield is to be chosen.
    """
    size, processes = size or BatchSize(), processes or Processes()
    unset = operator if isinstance(operator, Shielded) and operator.shield == AUTO else None
    if unset is not None:
        case = set_apart(case)
    collecting = _Collecting(vlm, operator, case, sites, size, processes)
    patching = _Patching(vlm, source, sites, processes)
    if unset is not None:
        return _chosen(patching, unset, case, collecting, size, progress, tolerance)
    return patching.edit(operator, collecting, progress)


class _Collecting:
    """What the operator asks for of each site, collected over all trained records."""

    def __init__(
        self, vlm: VLM, operator: Operator, case: Case, sites: Sequence[Site], size: BatchSize, processes: Processes
    ) -> None:
        self._vlm, self._operator, self._records = vlm, operator, case.hierarchy.records
        trained = [index for index, record in enumerate(self._records) if not record.held_out]
        self._batches = vlm.batches(self._records, trained, size, processes)
        self._groups = cache(partial(operator.groups, case))  # of each device: statistics stay where the layer is
        self._stages = in_data_order(sites) if operator.inputs_only else at_once(sites)
        self._flow: Flow | None = None
        self._held: dict[Stage, Mapping[Site, Statistics]] = {}

    def hold(self, progress: Progress) -> None:
        """Keep what no edit changes, and what goes into the connectors: later only those are run again."""
        self._flow = Flow(self._vlm, self._batches, self._records, keep_connectors=True)
        stages = [stage for stage in self._stages if not self._in_front(stage)]
        with progress("editing", len(stages) * len(self._batches)) as advance:
            self._held = {stage: self._collect(self._flow, stage, advance, {}) for stage in stages}
        self._flow.let_go()

    def each(self, progress: Progress, known: Mapping[str, Tensor]) -> Iterator[Seen]:
        """Each site's statistics, as soon as they are complete; what the model is by then is what later ones see.

        Args:
            known: what parameters are to be, as far as it has been found when the next site is asked for.
        """
        flow = self._flow or Flow(self._vlm, self._batches, self._records)
        left = [stage for stage in self._stages if stage not in self._held]
        with progress("editing", len(left) * len(self._batches)) as advance:
            for stage in self._stages:
                edited = {name: known[name] for name in self._in_front(stage) if name in known}
                found = None if edited else self._held.get(stage)
                if found is None:
                    found = self._collect(flow, stage, advance, edited)
                    if self._flow is not None and not edited:  # nothing to forget in front of it, whatever the shield
                        self._held[stage] = found
                for site in stage.sites:
                    yield site, found[site if site in found else stage.sites[0]]

    def _collect(
        self, flow: Flow, stage: Stage, advance: Callable[[int], None], edited: Mapping[str, Tensor]
    ) -> Mapping[Site, Statistics]:
        inputs_only = self._operator.inputs_only
        watched = stage.first_only if inputs_only else stage
        return flow.collect(watched, self._empty, advance, inputs_only=inputs_only, edited=edited)

    def _in_front(self, stage: Stage) -> list[str]:
        """Parameters before the stage's site in its connector, behind whose edits it is to be measured."""
        if not self._operator.mends or stage.last is not None:
            return []
        before = [each.sites[0] for each in self._stages[: self._stages.index(stage)]]
        near = (site for site in before if site.connector == stage.sites[0].connector)
        return [name for site in near for name in _parameters(site).values()]

    def _empty(self, site: Site) -> Statistics:
        d_out, d_in = site.weight(self._vlm.model).shape  # true also where the weight itself lies elsewhere
        return self._operator.statistics(self._groups(self._vlm.place_of(site.weight_name)), d_in, d_out)


def _chosen(
    patching: _Patching,
    operator: Shielded,
    case: Case,
    collecting: _Collecting,
    size: BatchSize,
    progress: Progress,
    tolerance: float,
) -> Patch:
    """The edit with the shield that a few trials find.

    All reuse what was collected, where there is room for the statistics of all sites; else each collects again.
    """
    vlm, processes = patching.vlm, patching.processes
    if _holdable(patching):
        collecting.hold(progress)

    def ask(records: Sequence[Record]) -> Scores:
        return ask_all(vlm, records, size, processes=processes)

    def edit(shield: float, progress: Progress) -> Patch:
        return patching.edit(replace(operator, shield=shield), collecting, progress)

    @contextmanager
    def edited(shield: float) -> Iterator[None]:
        with restoring(vlm, patching.parameters):
            edit(shield, silent)
            yield

    with progress("choosing the shield", len(SHIELDS).bit_length()) as advance:
        choice = choose(Questions(case), ask, edited, tolerance, lambda: advance(1))
    return replace(edit(choice.shield, progress), choice=choice)


def _holdable(patching: _Patching) -> bool:
    """Whether every process has room for the statistics of all sites together."""
    vlm, sizes = patching.vlm, Counter[torch.device]()
    for stage in in_data_order(patching.sites):
        site = stage.sites[0]
        width = site.weight(vlm.model).shape[1]
        sizes[vlm.place_of(site.weight_name)] += ShieldedStatistics.MOMENTS * SecondMoment.size(width)
    lacking = torch.tensor([float(not room_for(size, device)) for device, size in sizes.items()])
    patching.processes.add_(lacking)
    return not lacking.any()


class _Patching:
    """Turns statistics into new weights, in the model and for the disk."""

    def __init__(self, vlm: VLM, source: Checkpoint, sites: Sequence[Site], processes: Processes) -> None:
        self.vlm, self.processes, self.sites, self._source = vlm, processes, sites, source
        self._of_site = {site: _parameters(site) for site in sites}
        self.parameters = [name for names in self._of_site.values() for name in names.values()]
        self._disk = disk_names(source, self.parameters)

    def edit(self, operator: Operator, collecting: _Collecting, progress: Progress) -> Patch:
        """Edit the model in memory: site by site where the operator works in data order, else all in the end."""
        patch = Patch({}, {}, {}, self.vlm.shares_images)
        known: dict[str, Tensor] = {}
        waiting: list[tuple[Site, Solved]] = []
        for site, statistics in collecting.each(progress, known):
            found = self._solve(operator.at(site.kind), site, statistics)
            known |= found[0]
            if operator.data_order:
                self._apply(site, found, patch)
            else:
                waiting.append((site, found))
        for site, found in waiting:
            self._apply(site, found, patch)
        return patch

    def _solve(self, operator: Operator, site: Site, statistics: Any) -> Solved:
        """Name of each of the site's parameters -> what it becomes, as its stored dtype has it."""
        parameters = self._of_site[site]
        bias = None if site.bias_name is None else self.vlm.parameter(site.bias_name)
        try:
            update = operator.update(site.turned(self.vlm.parameter(site.weight_name)), bias, statistics)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise RunError(f"{site.name}: no trustworthy solution ({error}); a larger --ridge mends it") from error
        if update is None:
            return {}, None
        made = {name: getattr(update, part) for part, name in parameters.items()}
        return {
            name: self.processes.lead_(self._rounded(site.turned(new), name).contiguous())
            for name, new in made.items()
            if new is not None
        }, update.removed

    def _rounded(self, new: Tensor, name: str) -> Tensor:
        return round_once(new, self._source.entries[self._disk[name]].torch_dtype)

    def _apply(self, site: Site, solved: Solved, patch: Patch) -> None:
        parameters, removed = solved
        for name, rounded in parameters.items():
            changed = _apply(self.vlm, name, rounded, self._disk[name], patch)
            if changed and removed is not None:
                patch.removed[self._disk[name]] = site, removed


def _parameters(site: Site) -> dict[str, str]:
    """Part of an update -> the model's parameter that it changes."""
    return {"weight": site.weight_name, **({"bias": site.bias_name} if site.bias_name else {})}


def _apply(vlm: VLM, name: str, rounded: Tensor, disk_name: str, patch: Patch) -> bool:
    """Give a parameter its new value, as its stored dtype has it; whether that is another than before."""
    parameter = vlm.parameter(name)
    if torch.equal(rounded.to(parameter.dtype), parameter):
        return False
    old = parameter.to(wide_dtype(parameter.device))
    patch.relative_change[disk_name] = float(torch.linalg.norm(rounded.to(old.dtype) - old) / torch.linalg.norm(old))
    kept = vlm.set_parameter(name, rounded)
    exact = torch.equal(kept.to(rounded), rounded)  # not where the model computes in a narrower dtype
    patch.tensors[disk_name] = kept if exact else rounded.cpu()
    return True


def check_removed(source: Checkpoint, folder: Path, removed: Mapping[str, tuple[Site, Removed]]) -> dict[str, float]:
    """Look in the written tensors for the directions that an operator has taken out: ‖QᵀW′‖ / ‖QᵀW‖ by name on disk.

    Raises:
        RunError: more is left of them than rounding to the stored dtype can leave.
    """
    written, remaining = Checkpoint.open(folder), {}
    for name, (site, what) in removed.items():
        before, after = (site.turned(checkpoint.read(name)) for checkpoint in (source, written))
        left = what.left_in(after)
        if left > what.rounding(after):
            raise RunError(f"tensor {name!r}: the removed directions are still in what was written; check the disk")
        remaining[name] = left / what.left_in(before)
    return remaining
