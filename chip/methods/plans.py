"""Which of a method's plans an edit follows: gates where they are enough, else what leaves and costs the least."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite, nan

from torch import Tensor

from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError
from chip.methods.apply import EditContext, edit_step
from chip.methods.base import ENOUGH, Method, Plan, Search
from chip.methods.guard import check_guarded
from chip.methods.patch import Patch
from chip.methods.source import check_general
from chip.methods.trial import Baseline, Trial
from chip.methods.validation import ValidationSet, hold_out_validation
from chip.model.target_modules import TargetModule

INSTEAD = "a linear edit takes their place"


def edit_model(
    context: EditContext, method: Method, request: ForgetRequest, target_modules: Sequence[TargetModule]
) -> Patch:
    """Run the trained records through the model, and let the method edit it module by module.

    The model in memory is edited too, with the rounded weights: what is seen later is what will be written.

    Raises:
        InputError: a setting was to be found, and every value costs what is retained more than it may; or the pass in
            stages does not show what the model computes; or the method has no use for a guard.
        RunError: a system has no trustworthy solution, or a record does not fit into memory.
    """
    check_general(method, request.general)
    *first, last = method.plans(context.vlm, request, target_modules)
    if context.guard is not None:
        check_guarded(method)
        first = []  # of what gates take nothing would be guarded
    if not first:
        return _follow(context, last, target_modules)
    (gates,) = first
    undone = _try_gates(context, method, gates, target_modules)
    if isinstance(undone, Patch):
        return undone
    return _follow(context, last, target_modules) if undone is None else undone.or_better(context, last, target_modules)


def _follow(context: EditContext, plan: Plan, target_modules: Sequence[TargetModule]) -> Patch:
    """One edit after the other, each of the model that the one before has left."""
    patch = Patch(shares_images=context.vlm.shares_images)
    for step, part in plan.steps:
        if not step.has_work(part):
            if len(plan.steps) == 1:
                message = f"method {step.name}: nothing of the target is where it edits; the model stays as it is"
                warnings.warn(message, ChipWarning, stacklevel=2)
            continue
        modules = step.select(target_modules)
        if not modules:
            message = f"method {step.name} edits none of these modules; choose others"
            raise InputError(message, argument="target_modules")
        patch = patch.then(edit_step(context, step, part, modules), context.checkpoint)
    return patch


def _try_gates(
    context: EditContext, method: Method, plan: Plan, target_modules: Sequence[TargetModule]
) -> Patch | _Undone | None:
    """The plan's edit, if those who stay keep what the method's search promises them and the target is gone. Else the
    model is as it was: what was made of it, and None where it is out of the question."""
    assert plan.enough_for is not None
    assert method.search is not None
    search = replace(method.search.after(context.spent), enough=ENOUGH)
    questions, editor = ValidationSet(hold_out_validation(plan.enough_for)), context.editor(target_modules)
    baseline = Baseline(search, questions, context.score, context.general_loss)
    with editor.restoring() as keep:
        try:
            patch = _follow(context, plan, target_modules)
        except InputError as error:  # what is wrong beside the gates is found again without them
            _say(f"gates are left out: {error}; {INSTEAD}")
            return None
        if not patch.relative_change:
            _say(f"there is no room for gates; {INSTEAD}")
            return None
        trial = baseline.compare(float(getattr(method, "units", 0.0)))
        reason = f"{trial.effect}; never trained on, they would have {baseline.expected:.2f}"
        choice = patch.choice or baseline.choice("units", trial, (trial,), "gates", reason)
        patch = replace(patch, choice=choice, settings=asdict(method) | {"rank": context.precision.rank})
        if not isfinite(trial.forget_excess):  # the linear edit says where that comes from
            return None
        if trial.exceeded(search) is not None:
            _say(f"gates cost more than an edit may: {reason}; {INSTEAD}")
            return None
        if trial.suffices(search):
            questions.warn_if_few()
            keep()
            return patch
        return _Undone(patch, editor.copies(patch.target_modules), trial, reason, baseline)


@dataclass(frozen=True)
class _Undone:
    """Gates that keep all who stay, but are not enough, and were taken back."""

    patch: Patch
    values: dict[str, Tensor]
    """What they gave the model's parameters, on the CPU."""
    trial: Trial
    reason: str
    baseline: Baseline

    def or_better(self, context: EditContext, plan: Plan, target_modules: Sequence[TargetModule]) -> Patch:
        """The other plan's edit, where by the same questions that leaves or costs less; else these gates."""
        search, editor = self.baseline.search, context.editor(target_modules)
        with editor.restoring() as keep:
            try:
                patch = _follow(context, plan, target_modules)
            except InputError as error:
                why = f"a linear edit in their place is refused: {error}"
            else:
                trial = self.baseline.compare(nan)
                if _cost(trial, search) < _cost(self.trial, search):
                    _say(f"gates alone are not enough: {self.reason}; {INSTEAD}")
                    keep()
                    return patch
                why = f"a linear edit in their place costs more than it takes: {trial.effect}"
        _say(f"gates alone are not enough: {self.reason}; but {why}")
        editor.set(self.values)
        return self.patch


def _cost(trial: Trial, search: Search) -> tuple[bool, float]:
    return trial.exceeded(search) is not None, trial.cost(search)


def _say(message: str) -> None:
    warnings.warn(message, ChipWarning, stacklevel=3)
