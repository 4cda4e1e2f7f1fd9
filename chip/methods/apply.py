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

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import round_once
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.errors import RunError
from chip.kernels.gram import accumulation_dtype
from chip.methods.base import Method, Removed
from chip.methods.search import GRID, MAX_RETAIN_DROP, Choice, ValidationSet, choose, hold_out_validation
from chip.methods.shielded import AUTO, Shielded, ShieldedStatistics
from chip.methods.statistics import SecondMoment
from chip.model.batching.batch_size import BatchSize
from chip.model.forward.activation_store import room_for
from chip.model.forward.collector import Collector
from chip.model.loading import VLM
from chip.model.restoring import restoring
from chip.model.scoring import Scores, score_records
from chip.model.target_modules import (
    Stage,
    TargetModule,
    at_once,
    in_data_order,
    layer_range,
    parse_layers,
    select_modules,
)
from chip.model.tensor_names import disk_names
from chip.model.tokens import Statistics
from chip.progress import ProgressCallback, silent

Seen: TypeAlias = tuple[TargetModule, Any]
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
    removed: dict[str, tuple[TargetModule, Removed]]
    """What must be gone from the written tensor, where the operator takes directions out of it."""
    shares_images: bool = True
    """Whether questions about one image ran it once together."""
    choice: Choice | None = None
    """How the shield was found, where nobody gave one."""


def default_modules(
    vlm: VLM, method: Method, kinds: Sequence[str] | None = None, layers: str | None = None
) -> list[TargetModule]:
    """The sites to edit, in the order of data: as asked for, else the operator's own choice for this depth."""
    depth = len(vlm.layers)
    span = layer_range(method.layers, depth) if layers is None else parse_layers(layers, depth)
    return select_modules(vlm.model, method.target_modules if kinds is None else kinds, span)


def compute_updates(
    vlm: VLM,
    source: Checkpoint,
    method: Method,
    request: ForgetRequest,
    target_modules: Sequence[TargetModule],
    size: BatchSize | None = None,
    progress: ProgressCallback = silent,
    distributed: DistributedContext | None = None,
    max_retain_drop: float = MAX_RETAIN_DROP,
) -> Patch:
    """Run the trained records through the model, and let the operator edit it site by site.

    The model in memory is edited too, with the rounded weights: what is seen later is what will be written.

    Args:
        tolerance: what retained records may lose of their answers' probability, where the shield is to be chosen.
    """
    size, distributed = size or BatchSize(), distributed or DistributedContext()
    unset = method if isinstance(method, Shielded) and method.retain_weight == AUTO else None
    if unset is not None:
        request = hold_out_validation(request)
    collecting = _Collecting(vlm, method, request, target_modules, size, distributed)
    patching = _Patching(vlm, source, target_modules, distributed)
    if unset is not None:
        return _chosen(patching, unset, request, collecting, size, progress, max_retain_drop)
    return patching.edit(method, collecting, progress)


class _Collecting:
    """What the operator asks for of each site, collected over all trained records."""

    def __init__(
        self,
        vlm: VLM,
        method: Method,
        request: ForgetRequest,
        target_modules: Sequence[TargetModule],
        size: BatchSize,
        distributed: DistributedContext,
    ) -> None:
        self._vlm, self._operator, self._records = vlm, method, request.hierarchy.records
        trained = [index for index, record in enumerate(self._records) if not record.held_out]
        self._batches = vlm.batches(self._records, trained, size, distributed)
        self._groups = cache(partial(method.groups, request))  # of each device: statistics stay where the layer is
        self._stages = in_data_order(target_modules) if method.inputs_only else at_once(target_modules)
        self._flow: Collector | None = None
        self._held: dict[Stage, Mapping[TargetModule, Statistics]] = {}

    def hold(self, progress: ProgressCallback) -> None:
        """Keep what no edit changes, and what goes into the connectors: later only those are run again."""
        self._flow = Collector(self._vlm, self._batches, self._records, keep_connectors=True)
        stages = [stage for stage in self._stages if not self._in_front(stage)]
        with progress("editing", len(stages) * len(self._batches)) as advance:
            self._held = {stage: self._collect(self._flow, stage, advance, {}) for stage in stages}
        self._flow.release()

    def each(self, progress: ProgressCallback, known: Mapping[str, Tensor]) -> Iterator[Seen]:
        """Each site's statistics, as soon as they are complete; what the model is by then is what later ones see.

        Args:
            known: what parameters are to be, as far as it has been found when the next site is asked for.
        """
        flow = self._flow or Collector(self._vlm, self._batches, self._records)
        left = [stage for stage in self._stages if stage not in self._held]
        with progress("editing", len(left) * len(self._batches)) as advance:
            for stage in self._stages:
                edited = {name: known[name] for name in self._in_front(stage) if name in known}
                found = None if edited else self._held.get(stage)
                if found is None:
                    found = self._collect(flow, stage, advance, edited)
                    if self._flow is not None and not edited:  # nothing to forget in front of it, whatever the shield
                        self._held[stage] = found
                for module in stage.target_modules:
                    yield module, found[module if module in found else stage.target_modules[0]]

    def _collect(
        self, flow: Collector, stage: Stage, advance: Callable[[int], None], edited: Mapping[str, Tensor]
    ) -> Mapping[TargetModule, Statistics]:
        inputs_only = self._operator.inputs_only
        watched = stage.first_only if inputs_only else stage
        return flow.collect(watched, self._empty, advance, needs_outputs=not inputs_only, overrides=edited)

    def _in_front(self, stage: Stage) -> list[str]:
        """Parameters before the stage's site in its connector, behind whose edits it is to be measured."""
        if not self._operator.compose_connector or stage.last is not None:
            return []
        before = [each.target_modules[0] for each in self._stages[: self._stages.index(stage)]]
        neighbor_weight = (module for module in before if module.connector == stage.target_modules[0].connector)
        return [name for module in neighbor_weight for name in _parameters(module).values()]

    def _empty(self, module: TargetModule) -> Statistics:
        d_out, d_in = module.weight(self._vlm.model).shape  # true also where the weight itself lies elsewhere
        return self._operator.statistics(self._groups(self._vlm.place_of(module.weight_name)), d_in, d_out)


def _chosen(
    patching: _Patching,
    method: Shielded,
    request: ForgetRequest,
    collecting: _Collecting,
    size: BatchSize,
    progress: ProgressCallback,
    max_retain_drop: float,
) -> Patch:
    """The edit with the shield that a few trials find.

    All reuse what was collected, where there is room for the statistics of all sites; else each collects again.
    """
    vlm, distributed = patching.vlm, patching.distributed
    if _holdable(patching):
        collecting.hold(progress)

    def ask(records: Sequence[Record]) -> Scores:
        return score_records(vlm, records, size, distributed=distributed)

    def edit(retain_weight: float, progress: ProgressCallback) -> Patch:
        return patching.edit(replace(method, retain_weight=retain_weight), collecting, progress)

    @contextmanager
    def edited(retain_weight: float) -> Iterator[None]:
        with restoring(vlm, patching.parameters):
            edit(retain_weight, silent)
            yield

    with progress("choosing the shield", len(GRID).bit_length()) as advance:
        choice = choose(ValidationSet(request), ask, edited, max_retain_drop, lambda: advance(1))
    return replace(edit(choice.retain_weight, progress), choice=choice)


def _holdable(patching: _Patching) -> bool:
    """Whether every process has room for the statistics of all sites together."""
    vlm, sizes = patching.vlm, Counter[torch.device]()
    for stage in in_data_order(patching.target_modules):
        module = stage.target_modules[0]
        width = module.weight(vlm.model).shape[1]
        sizes[vlm.place_of(module.weight_name)] += ShieldedStatistics.MOMENTS * SecondMoment.size(width)
    lacking = torch.tensor([float(not room_for(size, device)) for device, size in sizes.items()])
    patching.distributed.all_reduce_(lacking)
    return not lacking.any()


class _Patching:
    """Turns statistics into new weights, in the model and for the disk."""

    def __init__(
        self, vlm: VLM, source: Checkpoint, target_modules: Sequence[TargetModule], distributed: DistributedContext
    ) -> None:
        self.vlm, self.distributed, self.target_modules, self._source = vlm, distributed, target_modules, source
        self._of_site = {module: _parameters(module) for module in target_modules}
        self.parameters = [name for names in self._of_site.values() for name in names.values()]
        self._disk = disk_names(source, self.parameters)

    def edit(self, method: Method, collecting: _Collecting, progress: ProgressCallback) -> Patch:
        """Edit the model in memory: site by site where the operator works in data order, else all in the end."""
        patch = Patch({}, {}, {}, self.vlm.shares_images)
        known: dict[str, Tensor] = {}
        waiting: list[tuple[TargetModule, Solved]] = []
        for module, statistics in collecting.each(progress, known):
            found = self._solve(method.at(module.kind), module, statistics)
            known |= found[0]
            if method.sequential:
                self._apply(module, found, patch)
            else:
                waiting.append((module, found))
        for module, found in waiting:
            self._apply(module, found, patch)
        return patch

    def _solve(self, method: Method, module: TargetModule, statistics: Any) -> Solved:
        """Name of each of the site's parameters -> what it becomes, as its stored dtype has it."""
        parameters = self._of_site[module]
        bias = None if module.bias_name is None else self.vlm.parameter(module.bias_name)
        try:
            update = method.update(module.oriented(self.vlm.parameter(module.weight_name)), bias, statistics)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise RunError(f"{module.name}: no trustworthy solution ({error}); a larger --ridge mends it") from error
        if update is None:
            return {}, None
        made = {name: getattr(update, part) for part, name in parameters.items()}
        return {
            name: self.distributed.broadcast_(self._rounded(module.oriented(new), name).contiguous())
            for name, new in made.items()
            if new is not None
        }, update.removed

    def _rounded(self, new: Tensor, name: str) -> Tensor:
        return round_once(new, self._source.entries[self._disk[name]].torch_dtype)

    def _apply(self, module: TargetModule, solved: Solved, patch: Patch) -> None:
        parameters, removed = solved
        for name, rounded in parameters.items():
            changed = _apply(self.vlm, name, rounded, self._disk[name], patch)
            if changed and removed is not None:
                patch.removed[self._disk[name]] = module, removed


def _parameters(module: TargetModule) -> dict[str, str]:
    """Part of an update -> the model's parameter that it changes."""
    return {"weight": module.weight_name, **({"bias": module.bias_name} if module.bias_name else {})}


def _apply(vlm: VLM, name: str, rounded: Tensor, disk_name: str, patch: Patch) -> bool:
    """Give a parameter its new value, as its stored dtype has it; whether that is another than before."""
    parameter = vlm.parameter(name)
    if torch.equal(rounded.to(parameter.dtype), parameter):
        return False
    old = parameter.to(accumulation_dtype(parameter.device))
    patch.relative_change[disk_name] = float(torch.linalg.norm(rounded.to(old.dtype) - old) / torch.linalg.norm(old))
    kept = vlm.set_parameter(name, rounded)
    exact = torch.equal(kept.to(rounded), rounded)  # not where the model computes in a narrower dtype
    patch.tensors[disk_name] = kept if exact else rounded.cpu()
    return True


def check_removed(
    source: Checkpoint, folder: Path, removed: Mapping[str, tuple[TargetModule, Removed]]
) -> dict[str, float]:
    """Look in the written tensors for the directions that an operator has taken out: ‖QᵀW′‖ / ‖QᵀW‖ by name on disk.

    Raises:
        RunError: more is left of them than rounding to the stored dtype can leave.
    """
    written, remaining = Checkpoint.open(folder), {}
    for name, (module, what) in removed.items():
        before, after = (module.oriented(checkpoint.read(name)) for checkpoint in (source, written))
        left = what.left_in(after)
        if left > what.rounding(after):
            raise RunError(f"tensor {name!r}: the removed directions are still in what was written; check the disk")
        remaining[name] = left / what.left_in(before)
    return remaining
