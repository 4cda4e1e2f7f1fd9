"""How strong an edit should be: found by a few trials on questions that nothing else is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from math import sqrt
from typing import Any, Literal

import numpy as np

from chip.data.record import Record
from chip.data.request import STAYING
from chip.errors import InputError
from chip.general.loss import GeneralLoss
from chip.methods.base import ENOUGH, Method, Search
from chip.methods.validation import Answers, ValidationSet
from chip.model.scoring import Scores

MAX_ENDED_DROP = 0.02
"""What may be lost of the part of general answers that end by themselves."""
STRIDE = 4
"""Steps of the grid from trial to trial, where the weakest edit that is enough is looked for."""
TIGHTENINGS = 4
"""Tries to find a hold on general data that is tight enough."""


Limit = Literal[
    "max_retain_drop",
    "max_general_kl",
    "general_ends",
    "never_trained",
    "small_gain",
    "enough",
    "gates",
    "strongest",
    "weakest",
]
"""Why a search went no further: those who stay would have lost more than they may, the model would have moved too far
on general data, or not ended its general answers, the target would have become less probable than if it had never been
trained on, those who stay would have lost more than the target, so much is forgotten that behind other edits nothing
stronger is wanted, gates were enough and nothing was searched for, or the grid ended, at the strongest forgetting or,
where even that made the target too improbable, at the weakest."""


@dataclass(frozen=True)
class Trial:
    """What an edit with this value does."""

    value: float
    forget_probability: float
    """Mean answer probability of the target's questions."""
    forget_excess: float
    """By how much that is above never trained on, with an image or in text only, whichever is more."""
    retain_drop: Mapping[str, float]
    """What of it the groups that are to stay have lost."""
    exact_drop: Mapping[str, float]
    """What they have lost of their exact match, beyond a single question."""
    drop_error: Mapping[str, float]
    """Standard error of that, as an estimate for all questions of the group."""
    general: GeneralLoss | None = None
    """What general data has lost; None where there is none."""

    def cost(self, search: Search) -> float:
        """What is left of the target, and what those who stay lose."""
        lost = (max(drop, self.exact_drop[group], 0.0) for group, drop in self.retain_drop.items())
        left = self.forget_probability if search.enough is None else max(self.forget_excess, search.enough)
        return left + search.loss_weight * sum(lost)

    def suffices(self, search: Search) -> bool:
        """Whether nothing is won by a stronger edit, whatever that costs."""
        return search.enough is not None and self.forget_excess <= search.enough

    def exceeded(self, search: Search) -> Limit | None:
        """The first limit that it goes beyond; None where it keeps all."""
        if max((*self.retain_drop.values(), *self.exact_drop.values()), default=0.0) > search.max_retain_drop:
            return "max_retain_drop"
        if self.general is not None and self.general.kl > search.max_general_kl:
            return "max_general_kl"
        if self.general is not None and self.general.ended_drop > MAX_ENDED_DROP:
            return "general_ends"
        return None


@dataclass(frozen=True)
class Choice:
    """The value that was found for a setting, and what it was chosen by."""

    setting: str
    """Name of the method's field."""
    value: float
    max_retain_drop: float
    before: Mapping[str, float]
    """Mean answer probability of the unedited model by group."""
    never_trained: float
    """The same for the target's questions and answers, had it never been trained on, as `ValidationSet` estimates."""
    trials: tuple[Trial, ...]
    """In the order in which they were made."""
    limit: Limit
    reason: str
    max_general_kl: float | None = None
    """KL to the unedited model that was allowed on general data; None where none was watched."""

    @property
    def limits(self) -> dict[str, float]:
        """The promises of the search, as settings."""
        general = {} if self.max_general_kl is None else {"max_general_kl": self.max_general_kl}
        return {"max_retain_drop": self.max_retain_drop, **general}

    @property
    def allowed(self) -> Mapping[str, float]:
        """What the groups that are to stay may lose of their mean answer probability."""
        return {group: self.max_retain_drop for group in STAYING if group in self.before}

    @property
    def tolerated(self) -> Mapping[str, float]:
        """What they may be found to have lost when all are asked: two standard errors of the trial more, and no more
        than twice as much."""
        (best,) = (trial for trial in self.trials if trial.value == self.value)
        return {group: most + min(2 * best.drop_error[group], most) for group, most in self.allowed.items()}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_search(
    search: Search,
    questions: ValidationSet,
    score: Callable[[Sequence[Record]], Scores],
    edited: Callable[[float], AbstractContextManager[None]],
    on_trial: Callable[[], None],
    general: Callable[[], GeneralLoss] | None = None,
) -> Choice:
    """The strongest forgetting at which siblings and others lose no more than `max_retain_drop` each, general data no
    more than `max_general_kl`, and at which the target is not made less probable than if it had never been trained on.

    All grow weaker along the grid, so that a search by halves finds it; and one more trial, half a step further. Of the
    trials that keep to all that, the one with the least `cost` is taken: the last step often takes more from those who
    stay than from the target. Where other edits came before, it looks for the weakest that is `Search.enough` instead.

    Args:
        score: asks the model as it is.
        edited: the model is edited with this value while the context lasts.
        on_trial: called after each trial.
        general: what the model as it is has lost of general data.

    Raises:
        InputError: with every value they lose more.
    """
    before, never = questions.ask(score), questions.never_trained(score)
    trials: dict[float, Trial] = {}

    def trial(value: float) -> Trial:
        if value not in trials:
            with edited(value):
                after, loss = questions.ask(score), None if general is None else general()
            excess = questions.excess(after["target"].probability, never)
            trials[value] = _trial(value, before, after, excess, loss)
            on_trial()
        return trials[value]

    def acceptable(value: float) -> bool:
        result = trial(value)
        return result.exceeded(search) is None and result.forget_excess >= 0

    best = (_by_halves if search.enough is None else _from_weakest)(search, trial, acceptable)
    kept = [each for each in trials.values() if acceptable(each.value)]
    best = min(kept, key=lambda each: (each.cost(search), -each.value), default=best)
    stronger = max((each for each in trials.values() if each.value < best.value), key=_value, default=None)
    limit, reason = _reason(search, best, stronger, float(never.mean()))
    means = {group: float(answers.probability.mean()) for group, answers in before.items()}
    made = tuple(trials.values())
    most = None if general is None else search.max_general_kl
    return Choice(
        search.setting, best.value, search.max_retain_drop, means, float(never.mean()), made, limit, reason, most
    )


def judge_gates(
    units: float,
    search: Search,
    questions: ValidationSet,
    score: Callable[[Sequence[Record]], Scores],
    edited: AbstractContextManager[None],
    general: Callable[[], GeneralLoss] | None = None,
) -> tuple[bool, Choice]:
    """Whether one edit, with gates as they are set, is as much as is wanted.

    Args:
        units: as `Gated` has it.
        search: what may be lost; other arguments as `run_search` has them.
    """
    before, never = questions.ask(score), questions.never_trained(score)
    with edited:
        after, loss = questions.ask(score), None if general is None else general()
    wanted = replace(search, enough=ENOUGH)
    trial = _trial(units, before, after, questions.excess(after["target"].probability, never), loss)
    means = {group: float(answers.probability.mean()) for group, answers in before.items()}
    expected = float(never.mean())
    reason = f"{_effect(trial)}; never trained on, they would have {expected:.2f}"
    most = None if general is None else search.max_general_kl
    choice = Choice("units", units, search.max_retain_drop, means, expected, (trial,), "gates", reason, most)
    return trial.suffices(wanted) and trial.exceeded(wanted) is None, choice


def _by_halves(search: Search, trial: Callable[[float], Trial], acceptable: Callable[[float], bool]) -> Trial:
    """Tries what leads to the strongest value that is acceptable, and one half a step further; where none is, gives the
    weakest."""
    low, high = 0, len(search.grid)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if acceptable(search.grid[middle]) else (middle + 1, high)
    best = trial(search.grid[min(low, len(search.grid) - 1)])
    _check_within(search, best)
    if 0 < low < len(search.grid):
        trial(float(f"{sqrt(best.value * search.grid[low - 1]):.3g}"))  # so that a person can give it again
    return best


def _from_weakest(search: Search, trial: Callable[[float], Trial], acceptable: Callable[[float], bool]) -> Trial:
    """Tries what leads to the weakest value that is enough, or as far as it is acceptable; gives the weakest of all.

    In strides, as a stronger one need not leave less: by halves it could miss a weak one that is enough.
    """
    weakest = trial(search.grid[-1])
    _check_within(search, weakest)
    for place in range(len(search.grid) - 1, -1, -STRIDE):
        if not acceptable(search.grid[place]) or trial(search.grid[place]).suffices(search):
            low, high = place, min(place + STRIDE, len(search.grid) - 1)
            while high - low > 1:
                middle = (low + high) // 2
                ends = not acceptable(search.grid[middle]) or trial(search.grid[middle]).suffices(search)
                low, high = (middle, high) if ends else (low, middle)
            break
    return weakest


def hold_general(method: Method, search: Search, divergence: Callable[[Method], float]) -> Method:
    """The method, with a hold on general data that is tight enough in the middle of the grid.

    A trust region at each layer bounds what the layer may do; what the model makes of it differs from model to model.
    KL grows with the square of a small change.

    Args:
        divergence: KL on general data of an edit with this method.
    """
    middle = search.grid[len(search.grid) // 2]
    for _ in range(TIGHTENINGS):
        excess = divergence(method.resolve_search(middle)) / search.max_general_kl
        tighter = method.tighten(0.9 / sqrt(excess)) if excess > 1 else None
        if tighter is None:
            return method
        method = tighter
    return method


def _check_within(search: Search, weakest: Trial) -> None:
    """Raise `InputError` where even the weakest forgetting costs too much."""
    exceeded, name = weakest.exceeded(search), search.setting.replace("_", " ")
    if exceeded == "max_retain_drop":
        message = f"even with a {name} of {weakest.value:g} {_drops(weakest)}; allow more, or give a {name}"
        raise InputError(message, argument="max_retain_drop", value=search.max_retain_drop)
    if exceeded is not None:
        message = f"even with a {name} of {weakest.value:g} {_general(weakest)}; allow more, or give a {name}"
        raise InputError(message, argument="max_general_kl", value=search.max_general_kl)


def _trial(
    value: float,
    before: Mapping[str, Answers],
    after: Mapping[str, Answers],
    excess: float,
    general: GeneralLoss | None,
) -> Trial:
    groups = [group for group in STAYING if group in before]
    drops = {group: before[group].probability - after[group].probability for group in groups}
    exact = {group: before[group].exact_match - after[group].exact_match for group in groups}
    return Trial(
        value,
        float(after["target"].probability.mean()),
        excess,
        {group: float(drop.mean()) for group, drop in drops.items()},
        {group: float(drop.mean()) - 1 / len(drop) for group, drop in exact.items()},
        {group: float(drop.std() / np.sqrt(len(drop))) for group, drop in drops.items()},
        general,
    )


def _reason(search: Search, best: Trial, stronger: Trial | None, never: float) -> tuple[Limit, str]:
    effect = _effect(best)
    if best.forget_excess < 0:
        return "weakest", f"{effect}; never trained on, they would have {never:.2f}, but nothing weaker was tried"
    if best.suffices(search):
        return "enough", f"{effect}; never trained on, they would have {never:.2f}, and earlier edits have cost too"
    if stronger is None:
        return "strongest", f"{effect}; nothing stronger was tried"
    exceeded = stronger.exceeded(search)
    if exceeded is not None:
        lost = _drops(stronger) if exceeded == "max_retain_drop" else _general(stronger)
        return exceeded, f"{effect}; with {stronger.value:g} {lost}"
    further = f"with {stronger.value:g} to {stronger.forget_probability:.2f}"
    if stronger.forget_excess >= 0:
        return "small_gain", f"{effect}; {further}, but {_drops(stronger)}"
    return "never_trained", f"{effect}; {further}, and never trained on they would have {never:.2f}"


def _effect(trial: Trial) -> str:
    fall = f"the target's answers fall to a probability of {trial.forget_probability:.2f}"
    return ", ".join(filter(None, (fall, _drops(trial), _general(trial))))


def _value(trial: Trial) -> float:
    return trial.value


def _general(trial: Trial) -> str:
    """What general data loses; empty where there is none."""
    loss = trial.general
    if loss is None:
        return ""
    ends = f" and {loss.ended_drop:.2f} of its endings" if loss.ended_drop > MAX_ENDED_DROP else ""
    return f"general text moves by {loss.kl:.4f} nats a token{ends}"


def _drops(trial: Trial) -> str:
    names = {"siblings": "siblings", "other": "others"}
    lost = {group: max(drop, trial.exact_drop[group], 0.0) for group, drop in trial.retain_drop.items()}
    return " and ".join(f"{names[group]} lose {drop:.3f}" for group, drop in lost.items())
