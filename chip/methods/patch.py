"""What an edit changes: solutions as new weights, in the model and for the disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import round_once
from chip.distributed import DistributedContext
from chip.errors import ChipWarning, InputError, RunError
from chip.kernels.gram import accumulation_dtype
from chip.kernels.low_rank import leading_outputs
from chip.methods.base import MeasuredModule, Method, Removed, WeightUpdate
from chip.methods.guard import Guard
from chip.methods.trial import Choice
from chip.model.activations import activation_behind
from chip.model.experts import OutputMap
from chip.model.loading import VLM
from chip.model.target_modules import TargetModule
from chip.model.tensor_names import stored_tensors
from chip.model.tokens import Statistics
from chip.model.weights import Weights

_ROWS = {"cpu": 16}  # of a weight, that are compared at once; elsewhere 4,096
Orient = Callable[[Tensor], Tensor]
"""From a tensor as it is stored to (d_out, ...), or to a bias (d_out,)."""


@dataclass(frozen=True)
class Patch:
    """What an edit changes on disk; everything by the tensor's name there."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What the tensor becomes; values that its stored dtype has. Mostly the edited model's own parameters, so that
    nothing is held twice."""
    relative_change: dict[str, float] = field(default_factory=dict)
    """‖W′ − W‖ / ‖W‖ (Frobenius), after rounding."""
    removed: dict[str, tuple[Orient, Removed]] = field(default_factory=dict)
    """What must be gone from the written tensor, where the method takes directions out of it; see `Orient`."""
    shares_images: bool = True
    """Whether questions about one image ran it once together."""
    choice: Choice | None = None
    """How the setting that nobody gave was found."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the method was set to, and what was found for the setting that nobody gave."""
    target_modules: tuple[TargetModule, ...] = ()
    """What was measured and solved for."""
    guard: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """`Guard.factors` of what was solved for, this edit's in them; empty without a guard. It tells of the forgotten."""

    def then(self, later: Patch, checkpoint: Checkpoint) -> Patch:
        """Both edits, one after the other, of the checkpoint."""
        changes = {
            name: _relative_change(later.tensors[name], checkpoint.read(name)) if name in self.tensors else change
            for name, change in later.relative_change.items()
        }
        return replace(
            later,
            tensors=self.tensors | later.tensors,
            relative_change=self.relative_change | changes,
            removed=self.removed | later.removed,
            guard=self.guard | later.guard,
            choice=later.choice or self.choice,
            settings={**self.settings, **later.settings},
            target_modules=tuple(dict.fromkeys((*self.target_modules, *later.target_modules))),
        )


def _relative_change(new: Tensor, old: Tensor) -> float:
    """‖W′ − W‖ / ‖W‖; some rows at a time, so that no wide copy of the whole is made."""
    change, size = torch.zeros(2, dtype=accumulation_dtype(new.device), device=new.device)
    rows = _ROWS.get(new.device.type, 4096)
    for after, before in zip(torch.split(new, rows), torch.split(old, rows), strict=True):
        before = before.to(change)
        change += (after.to(change) - before).square().sum()
        size += before.square().sum()
    return float((change / size).sqrt())


@dataclass(frozen=True)
class Solution:
    """What a module's parameters become, as their stored dtypes have it."""

    module: TargetModule
    values: Mapping[str, Tensor]
    """By the model's name of the parameter."""
    removed: Removed | None


@dataclass(frozen=True)
class Precision:
    """How exactly new weights are kept."""

    rank: int | None = None
    """The most directions that a module's weight changes by; None: as many as the method wants."""
    rounded: bool = True
    """Whether they are rounded to the dtypes that they are stored in; else to fp32."""


class WeightEditor:
    """Turns statistics into new weights, in the model and for the disk."""

    def __init__(
        self,
        vlm: VLM,
        checkpoint: Checkpoint,
        target_modules: Sequence[TargetModule],
        distributed: DistributedContext,
        precision: Precision | None = None,
        weights: Weights | None = None,
        guard: Guard | None = None,
    ) -> None:
        """
        Args:
            weights: those that are edited; by default the model's own, which else is a copy that is measured on.
            guard: what earlier edits took out, where later ones are to leave that.
        """
        self.weights, self._measured_apart = weights or vlm.weights, weights not in (None, vlm.weights)
        self.vlm, self.distributed, self._precision = vlm, distributed, precision or Precision()
        self._guard = guard
        self.parameters = [name for module in target_modules for name in module.parameter_names]
        in_blocks = [each.name for module in target_modules for each in module.output_maps]
        fused = [name for name in in_blocks if ".experts." in name]
        linear = [name for name in self.parameters if name not in fused]
        self._disk = stored_tensors(checkpoint, linear, fused, self.weights.parameter)
        stored = {name: checkpoint.entries[self._disk[name].names[0]].torch_dtype for name in self.parameters}
        self._dtypes = stored if self._precision.rounded else dict.fromkeys(stored, torch.float32)

    def solve(
        self, method: Method, statistics: Mapping[TargetModule, Statistics], patch: Patch | None = None
    ) -> list[Solution]:
        """The method's solutions for the modules of a stage, rounded once to the stored dtypes; the same in all
        processes.

        Args:
            patch: gets what a later edit is to leave as it is, where there is a guard.

        Raises:
            InputError: the weight is NaN or infinite.
            RunError: there is no trustworthy solution.
        """
        measured = {module: self._measured(module, seen) for module, seen in statistics.items()}
        try:
            solved = method.solve_stage(measured)
            if self._guard is not None and patch is not None and method.needs.guard:
                for module, update in solved.items():
                    assert update.metric is not None  # as `Needs.guard` says
                    taken = method.taken(measured[module].statistics)
                    patch.guard[module.name] = self._guard.grown(module, taken, update.metric)
            updates = {module: self._cut(method, measured[module], update) for module, update in solved.items()}
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            names = ", ".join(module.name for module in statistics)
            raise RunError(f"{names}: no trustworthy solution ({error}); a larger ridge helps") from error
        return [self._rounded(module, update) for module, update in updates.items()]

    def _measured(self, module: TargetModule, statistics: Statistics) -> MeasuredModule:
        if not all(self.weights.parameter(name).isfinite().all() for name in module.parameter_names):
            raise InputError(f"{module.name}: its weight is NaN or infinite in places; fetch the checkpoint again")
        parameter = self.weights.parameter(module.weight_name)
        guarded = None if self._guard is None else self._guard.at(module)
        if module.output_maps:  # W of a block's output is I
            identity = torch.eye(module.shape(self.vlm.model)[0], dtype=parameter.dtype, device=parameter.device)
            return MeasuredModule(identity, None, statistics, None, guarded)
        weight = module.oriented(parameter)
        bias = None if module.bias_name is None else self.weights.parameter(module.bias_name)
        return MeasuredModule(weight, bias, statistics, activation_behind(self.vlm.model, module), guarded)

    def _cut(self, method: Method, measured: MeasuredModule, update: WeightUpdate) -> WeightUpdate:
        """The update, cut to as many directions as were asked for: those that matter most to the method."""
        rank = self._precision.rank
        if rank is None:
            return update
        if update.metric is None:
            message = f"method {method.name} does not say what a change costs: its rank is cut by size alone"
            warnings.warn(message, ChipWarning, stacklevel=2)
        weight = measured.weight.to(update.weight.dtype)
        change = update.weight - weight
        outputs = leading_outputs(change, rank, update.metric)
        return replace(update, weight=weight + outputs @ (outputs.T @ change), removed=None)

    def _rounded(self, module: TargetModule, update: WeightUpdate) -> Solution:
        new = {module.weight_name: update.weight, module.bias_name: update.bias}
        if module.output_maps:
            rounded = {each.name: self._multiplied(each, update.weight) for each in module.output_maps}
        else:
            rounded = {
                name: round_once(module.oriented(value), self._dtypes[name])
                for name, value in new.items()
                if name is not None and value is not None
            }
        shared = {name: self.distributed.broadcast_(value.contiguous()) for name, value in rounded.items()}
        values = {name: self.weights.hold(value) for name, value in shared.items()}
        return Solution(module, values, update.removed)

    def _multiplied(self, output_map: OutputMap, matrix: Tensor) -> Tensor:
        """The parameter behind M (d, d), one expert after the other: all of them in fp64 would be several times it."""
        value, dtype = self.weights.parameter(output_map.name), self._dtypes[output_map.name]
        if value.dim() < 3:
            return round_once(output_map.multiplied(matrix, value), dtype)
        single = OutputMap(output_map.name, output_map.axis - 1)
        return torch.stack([round_once(single.multiplied(matrix, expert), dtype) for expert in value])

    @contextmanager
    def restoring(self) -> Iterator[Callable[[], object]]:
        """Afterwards all that is edited is as before, also after an error; but not if what this gives is called."""
        with ExitStack() as stack:
            for weights in dict.fromkeys((self.vlm.weights, self.weights)):
                stack.callback(weights.snapshot(self.parameters))
            yield stack.pop_all

    def copies(self, target_modules: Sequence[TargetModule]) -> dict[str, Tensor]:
        """Parameters of these modules as they are, on the CPU."""
        names = [name for module in target_modules for name in module.parameter_names]
        return {name: self.weights.parameter(name).detach().to("cpu", copy=True) for name in names}

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Give parameters of the model these values."""
        for name, value in values.items():
            self.weights.set_parameter(name, value)
            if self._measured_apart:
                self.vlm.set_parameter(name, value)

    def apply(self, solutions: Sequence[Solution], patch: Patch) -> None:
        """Give the model's parameters their new values, and note in the patch what changes on disk."""
        for solution in solutions:
            for name, value in solution.values.items():
                changed = self._set(name, value, patch)
                if solution.removed is not None:
                    orient = self._orient(solution.module, name)
                    patch.removed.update(dict.fromkeys(changed, (orient, solution.removed)))

    def _set(self, name: str, value: Tensor, patch: Patch) -> list[str]:
        """Names on disk of what had other values before."""
        parameter, disk = self.weights.parameter(name), self._disk[name]
        there = value.to(parameter.device)
        changes = {
            disk_name: _relative_change(new, old)
            for (disk_name, new), (_, old) in zip(disk.parts(there), disk.parts(parameter), strict=True)
            if not torch.equal(new.to(old.dtype), old)
        }
        if changes:
            patch.relative_change.update(changes)
            stored = self.weights.set_parameter(name, value)
            if self._measured_apart:
                self.vlm.set_parameter(name, value)
            exact = torch.equal(stored.to(value), value)  # not where the model computes in a narrower dtype
            parts = dict(disk.parts(stored if exact else value.cpu()))
            patch.tensors.update({disk_name: parts[disk_name] for disk_name in changes})
        return list(changes)

    def _orient(self, module: TargetModule, name: str) -> Orient:
        """From what is stored of a parameter to (d_out, ...)."""
        if not module.output_maps:
            return module.oriented
        (axis,) = (each.axis for each in module.output_maps if each.name == name)
        disk = self._disk[name]
        axis = {1: 2, 2: 1}.get(axis, axis) if disk.transposed else axis
        return lambda stored: stored.movedim(axis - disk.per_expert, 0).flatten(min(1, stored.dim() - 1))


def check_removed(source: Checkpoint, folder: Path, removed: Mapping[str, tuple[Orient, Removed]]) -> dict[str, float]:
    """Look in the written tensors for the directions that a method has taken out: ‖QᵀW′‖ / ‖QᵀW‖ by name on disk.

    Raises:
        RunError: more is left of them than rounding to the stored dtype can leave.
    """
    written, remaining = Checkpoint.open(folder), {}
    for name, (orient, directions) in removed.items():
        before, after = (orient(checkpoint.read(name)) for checkpoint in (source, written))
        norm = directions.norm_in(after)
        if norm > directions.rounding(after):
            raise RunError(f"tensor {name!r}: the removed directions are still in what was written; check the disk")
        remaining[name] = norm / directions.norm_in(before)
    return remaining
