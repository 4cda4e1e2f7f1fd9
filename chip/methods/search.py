"""How strong an edit should be: found by a few trials on questions that nothing else is judged by."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import sqrt

from chip.errors import InputError
from chip.methods.base import Method, Search
from chip.methods.trial import Baseline, Choice, Limit, Trial

STRIDE = 4
"""Steps of the grid from trial to trial, where the weakest edit that is enough is looked for."""
TIGHTENINGS = 4
"""Tries to find a hold on general data that is tight enough."""


def run_search(
    baseline: Baseline, edited: Callable[[float], AbstractContextManager[None]], on_trial: Callable[[], None]
) -> Choice:
    """The strongest forgetting at which siblings and others lose no more than `max_retain_drop` each, general data no
    more than `max_general_kl`, and at which the target is not made less probable than if it had never been trained on.

    All grow weaker along the grid, so that a search by halves finds it; and one more trial, half a step further. Of the
    trials that keep to all that, the one with the least `cost` is taken: the last step often takes more from those who
    stay than from the target. Where other edits came before, it looks for the weakest that is `Search.enough` instead.

    Args:
        edited: the model is edited with this value while the context lasts.
        on_trial: called after each trial.

    Raises:
        InputError: with every value they lose more.
    """
    search, trials = baseline.search, dict[float, Trial]()

    def trial(value: float) -> Trial:
        if value not in trials:
            with edited(value):
                trials[value] = baseline.compare(value)
            on_trial()
        return trials[value]

    def acceptable(value: float) -> bool:
        result = trial(value)
        return result.exceeded(search) is None and result.forget_excess >= 0

    best = (_by_halves if search.enough is None else _from_weakest)(search, trial, acceptable)
    kept = [each for each in trials.values() if acceptable(each.value)]
    best = min(kept, key=lambda each: (each.cost(search), -each.value), default=best)
    stronger = max((each for each in trials.values() if each.value < best.value), key=_value, default=None)
    limit, reason = _reason(search, best, stronger, baseline.expected)
    return baseline.choice(search.setting, best, [*trials.values()], limit, reason)


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
        message = f"even with a {name} of {weakest.value:g} {weakest.losses}; allow more, or give a {name}"
        raise InputError(message, argument="max_retain_drop", value=search.max_retain_drop)
    if exceeded is not None:
        message = f"even with a {name} of {weakest.value:g} {weakest.general_loss}; allow more, or give a {name}"
        raise InputError(message, argument="max_general_kl", value=search.max_general_kl)


def _reason(search: Search, best: Trial, stronger: Trial | None, never: float) -> tuple[Limit, str]:
    expected = f"{best.effect}; never trained on, they would have {never:.2f}"
    if best.forget_excess < 0:
        return "weakest", f"{expected}, but nothing weaker was tried"
    if best.suffices(search):
        return "enough", f"{expected}, and earlier edits have cost too"
    if stronger is None:
        return "strongest", f"{best.effect}; nothing stronger was tried"
    exceeded = stronger.exceeded(search)
    if exceeded is not None:
        lost = stronger.losses if exceeded == "max_retain_drop" else stronger.general_loss
        return exceeded, f"{best.effect}; with {stronger.value:g} {lost}"
    further = f"with {stronger.value:g} to {stronger.forget_probability:.2f}"
    if stronger.forget_excess >= 0:
        return "small_gain", f"{best.effect}; {further}, but {stronger.losses}"
    return "never_trained", f"{best.effect}; {further}, and never trained on they would have {never:.2f}"


def _value(trial: Trial) -> float:
    return trial.value
