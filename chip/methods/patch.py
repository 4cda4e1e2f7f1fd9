"""What an edit changes: solutions as new weights, in the model and for the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import round_once
from chip.distributed import DistributedContext
from chip.errors import InputError, RunError
from chip.kernels.gram import accumulation_dtype
from chip.methods.base import MeasuredModule, Method, Removed, WeightUpdate
from chip.methods.search import Choice
from chip.methods.source import parameter_names
from chip.model.activations import activation_behind
from chip.model.loading import VLM
from chip.model.target_modules import TargetModule
from chip.model.tensor_names import disk_names
from chip.model.tokens import Statistics


@dataclass(frozen=True)
class Patch:
    """What an edit changes on disk; everything by the tensor's name there."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What the tensor becomes; values that its stored dtype has. Mostly the edited model's own parameters, so that
    nothing is held twice."""
    relative_change: dict[str, float] = field(default_factory=dict)
    """‖W′ − W‖ / ‖W‖ (Frobenius), after rounding."""
    removed: dict[str, tuple[TargetModule, Removed]] = field(default_factory=dict)
    """What must be gone from the written tensor, where the method takes directions out of it."""
    shares_images: bool = True
    """Whether questions about one image ran it once together."""
    choice: Choice | None = None
    """How the setting that nobody gave was found."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the method was set to, and what was found for the setting that nobody gave."""

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
            choice=later.choice or self.choice,
            settings={**self.settings, **later.settings},
        )


def _relative_change(new: Tensor, old: Tensor) -> float:
    """‖W′ − W‖ / ‖W‖."""
    old = old.to(new.device, accumulation_dtype(new.device))
    return float(torch.linalg.norm(new.to(old.dtype) - old) / torch.linalg.norm(old))


@dataclass(frozen=True)
class Solution:
    """What a module's parameters become, as their stored dtypes have it."""

    module: TargetModule
    values: Mapping[str, Tensor]
    """By the model's name of the parameter."""
    removed: Removed | None


class WeightEditor:
    """Turns statistics into new weights, in the model and for the disk."""

    def __init__(
        self, vlm: VLM, checkpoint: Checkpoint, target_modules: Sequence[TargetModule], distributed: DistributedContext
    ) -> None:
        self.vlm, self.distributed = vlm, distributed
        self.parameters = [name for module in target_modules for name in parameter_names(module)]
        self._disk = disk_names(checkpoint, self.parameters)
        self._dtypes = {name: checkpoint.entries[self._disk[name]].torch_dtype for name in self.parameters}

    def solve(self, method: Method, statistics: Mapping[TargetModule, Statistics]) -> list[Solution]:
        """The method's solutions for the modules of a stage, rounded once to the stored dtypes; the same in all
        processes.

        Raises:
            InputError: the weight is NaN or infinite.
            RunError: there is no trustworthy solution.
        """
        measured = {module: self._measured(module, seen) for module, seen in statistics.items()}
        try:
            updates = method.solve_stage(measured)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            names = ", ".join(module.name for module in statistics)
            raise RunError(f"{names}: no trustworthy solution ({error}); a larger ridge helps") from error
        return [self._rounded(module, update) for module, update in updates.items()]

    def _measured(self, module: TargetModule, statistics: Statistics) -> MeasuredModule:
        weight = module.oriented(self.vlm.parameter(module.weight_name))
        if not weight.isfinite().all():
            raise InputError(f"{module.name}: its weight is NaN or infinite in places; fetch the checkpoint again")
        bias = None if module.bias_name is None else self.vlm.parameter(module.bias_name)
        return MeasuredModule(weight, bias, statistics, activation_behind(self.vlm.model, module))

    def _rounded(self, module: TargetModule, update: WeightUpdate) -> Solution:
        new = {module.weight_name: update.weight, module.bias_name: update.bias}
        values = {
            name: self.distributed.broadcast_(round_once(module.oriented(value), self._dtypes[name]).contiguous())
            for name, value in new.items()
            if name is not None and value is not None
        }
        return Solution(module, {name: self.vlm.weights.hold(value) for name, value in values.items()}, update.removed)

    def apply(self, solutions: Sequence[Solution], patch: Patch) -> None:
        """Give the model's parameters their new values, and note in the patch what changes on disk."""
        for solution in solutions:
            for name, value in solution.values.items():
                changed = self._set(name, value, patch)
                if changed and solution.removed is not None:
                    patch.removed[self._disk[name]] = solution.module, solution.removed

    def _set(self, name: str, value: Tensor, patch: Patch) -> bool:
        """Whether the parameter had another value before."""
        parameter, disk_name = self.vlm.parameter(name), self._disk[name]
        there = value.to(parameter.device)
        if torch.equal(there.to(parameter.dtype), parameter):
            return False
        patch.relative_change[disk_name] = _relative_change(there, parameter)
        stored = self.vlm.set_parameter(name, value)
        exact = torch.equal(stored.to(value), value)  # not where the model computes in a narrower dtype
        patch.tensors[disk_name] = stored if exact else value.cpu()
        return True


def check_removed(
    source: Checkpoint, folder: Path, removed: Mapping[str, tuple[TargetModule, Removed]]
) -> dict[str, float]:
    """Look in the written tensors for the directions that a method has taken out: ‖QᵀW′‖ / ‖QᵀW‖ by name on disk.

    Raises:
        RunError: more is left of them than rounding to the stored dtype can leave.
    """
    written, remaining = Checkpoint.open(folder), {}
    for name, (module, directions) in removed.items():
        before, after = (module.oriented(checkpoint.read(name)) for checkpoint in (source, written))
        norm = directions.norm_in(after)
        if norm > directions.rounding(after):
            raise RunError(f"tensor {name!r}: the removed directions are still in what was written; check the disk")
        remaining[name] = norm / directions.norm_in(before)
    return remaining
