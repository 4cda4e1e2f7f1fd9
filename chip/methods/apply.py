"""From records to new weights: every record passes through the model, and the method solves module by module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import round_once
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.errors import InputError, RunError
from chip.general.loss import GeneralReference
from chip.kernels.gram import accumulation_dtype
from chip.methods.base import MeasuredModule, Method, Removed, Search, WeightUpdate
from chip.methods.search import Choice, hold_general, run_search
from chip.methods.source import StatisticsSource, can_keep, check_general, parameter_names
from chip.methods.validation import ValidationSet, hold_out_validation
from chip.model.activations import activation_behind
from chip.model.batching.batch_size import BatchSize
from chip.model.forward.self_check import check_pass
from chip.model.loading import VLM
from chip.model.restoring import restoring
from chip.model.scoring import score_records
from chip.model.target_modules import TargetModule, layer_range, parse_layers, select_modules
from chip.model.tensor_names import disk_names
from chip.model.tokens import Statistics
from chip.progress import ProgressCallback, silent


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


def default_modules(
    vlm: VLM, method: Method, kinds: Sequence[str] | None = None, layers: str | None = None
) -> list[TargetModule]:
    """The modules to edit, in the order of data: as asked for, else the method's own choice for this depth."""
    depth = len(vlm.layers)
    span = layer_range(method.layers, depth) if layers is None else parse_layers(layers, depth)
    return select_modules(vlm.model, method.target_modules if kinds is None else kinds, span)


def edit_model(
    vlm: VLM,
    checkpoint: Checkpoint,
    method: Method,
    request: ForgetRequest,
    target_modules: Sequence[TargetModule],
    size: BatchSize | None = None,
    progress: ProgressCallback = silent,
    distributed: DistributedContext | None = None,
    general: GeneralReference | None = None,
) -> Patch:
    """Run the trained records through the model, and let the method edit it module by module.

    The model in memory is edited too, with the rounded weights: what is seen later is what will be written.

    Args:
        general: what a search watches beside the records.

    Raises:
        InputError: a setting was to be found, and every value costs what is retained more than it may; or the pass in
            stages does not show what the model computes.
        RunError: a system has no trustworthy solution, or a record does not fit into memory.
    """
    context = _Context(vlm, checkpoint, size or BatchSize(), progress, distributed or DistributedContext(), general)
    check_general(method, request)
    patch = Patch(shares_images=vlm.shares_images)
    for step in method.steps:
        modules = [module for module in target_modules if step.can_edit(module)]
        if not modules:
            message = f"method {step.name} edits none of these modules; choose others"
            raise InputError(message, argument="target_modules")
        patch = patch.then(_edit_step(context, step, request, modules), checkpoint)
    return patch


@dataclass(frozen=True)
class _Context:
    """What all steps of a method share."""

    vlm: VLM
    checkpoint: Checkpoint
    size: BatchSize
    progress: ProgressCallback
    distributed: DistributedContext
    general: GeneralReference | None


def _edit_step(
    context: _Context, method: Method, request: ForgetRequest, target_modules: Sequence[TargetModule]
) -> Patch:
    """`edit_model` with one of the method's steps."""
    vlm, distributed, progress, search = context.vlm, context.distributed, context.progress, method.search
    if search is not None:
        request = hold_out_validation(request)
    if request.general and not method.needs.general:
        request = replace(request, general=())
    source = StatisticsSource(vlm, method, request, target_modules, context.size, distributed)
    trained = [index for index in request.partition.forget if not request.records[index].held_out]
    check_pass(vlm, request.records, trained, source.stages, method.needs.outputs)
    editor = WeightEditor(vlm, context.checkpoint, target_modules, distributed)
    choice = None
    if search is not None:
        if can_keep(vlm, method, target_modules, distributed):
            source.keep(progress)  # else each trial measures again
        trials = _Trials(source, editor, context.size, context.general)
        if context.general is not None:
            method = hold_general(method, search, trials.divergence)
        choice = trials.find(search, method, ValidationSet(request), progress)
        method = method.resolve_search(choice.value)
    patch = edit_stages(method, source, editor, progress)
    return replace(patch, choice=choice, settings=asdict(method))


def edit_stages(
    method: Method, source: StatisticsSource, editor: WeightEditor, progress: ProgressCallback = silent
) -> Patch:
    """Measure, solve and edit, stage by stage in the order of data."""
    patch = Patch(shares_images=editor.vlm.shares_images)
    values: dict[str, Tensor] = {}  # of all parameters solved for so far
    waiting: list[Solution] = []
    source.restart()
    with progress("editing", source.steps) as advance:
        for stage in source.stages:
            # 1. Parameters of the same connector that come earlier, as they will be.
            overrides = {name: values[name] for name in source.parameters_before(stage) if name in values}
            # 2. Every record passes through the stage, and the method's sums see its tokens.
            statistics = source.collect(stage, overrides, advance)
            # 3. The method solves for the new weights of the stage's modules.
            solutions = editor.solve(method, statistics)
            for solution in solutions:
                values |= solution.values
            # 4. Later stages see the edited model, or the original one until all are solved.
            if method.needs.model == "sequential":
                editor.apply(solutions, patch)
            else:
                waiting += solutions
    editor.apply(waiting, patch)
    return patch


@dataclass(frozen=True)
class _Trials:
    """Edits of the model in memory, which is afterwards as it was."""

    source: StatisticsSource
    editor: WeightEditor
    size: BatchSize
    general: GeneralReference | None

    @contextmanager
    def edited(self, method: Method) -> Iterator[None]:
        with restoring(self.editor.vlm, self.editor.parameters):
            edit_stages(method, self.source, self.editor)
            yield

    def divergence(self, method: Method) -> float:
        """KL on general data."""
        assert self.general is not None
        with self.edited(method):
            return self.general.divergence(self.editor.vlm)

    def find(self, search: Search, method: Method, questions: ValidationSet, progress: ProgressCallback) -> Choice:
        """Try values of the setting that nobody gave."""
        questions.warn_if_few()
        vlm = self.editor.vlm
        score = partial(score_records, vlm, size=self.size, distributed=self.editor.distributed)
        compare = None if self.general is None else partial(self.general.compare, vlm)
        what = f"choosing the {search.setting.replace('_', ' ')}"
        with progress(what, len(search.grid).bit_length()) as advance:
            return run_search(
                search,
                questions,
                score,
                lambda value: self.edited(method.resolve_search(value)),
                lambda: advance(1),
                compare,
            )


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
        return Solution(module, values, update.removed)

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
        if torch.equal(value.to(parameter.dtype), parameter):
            return False
        patch.relative_change[disk_name] = _relative_change(value, parameter)
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
