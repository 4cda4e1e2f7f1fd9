"""How strong an edit should be: found by a few trials on questions that nothing else is judged by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chip.data.chance import chance_accuracy, mean_over
from chip.data.hierarchy import Hierarchy
from chip.data.record import VALIDATION, Record
from chip.data.request import ForgetRequest
from chip.errors import InputError
from chip.methods.base import Search
from chip.model.scoring import Scores

MAX_QUESTIONS = 256
"""Questions of a group, at most."""
VALIDATION_FRACTION = 1 / 8
"""The part of the trained retained questions that is held out, where no record has the split `validation`."""
COUNTERFACTUAL_IMAGES = 4
"""Images of others that a question of the target is asked about."""

ALLOWED = {"siblings": 1.0, "other": 0.5}
"""Group that is to stay -> what it may lose, as a share of the search's `max_retain_drop`: the others are many, and
nothing of theirs is near the target."""


@dataclass(frozen=True)
class Trial:
    """What an edit with this value does."""

    value: float
    forget_probability: float
    """Mean answer probability of the target's questions."""
    retain_drop: Mapping[str, float]
    """What of it the groups that are to stay have lost."""

    def within(self, max_retain_drop: float) -> bool:
        return all(drop <= ALLOWED[group] * max_retain_drop for group, drop in self.retain_drop.items())


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
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def hold_out_validation(request: ForgetRequest, seed: int = 0) -> ForgetRequest:
    """The same request with some trained questions of what is retained as `validation`, of groups that have none.

    An edit that has seen a wording keeps it better than one it has not, so that the trials would promise too much.
    """
    records, generator = list(request.hierarchy.records), np.random.default_rng(seed)
    for indices in (request.partition.siblings, request.partition.retain_other):
        trained = [i for i in indices if not records[i].held_out]
        if not any(records[i].split == VALIDATION for i in indices):
            for i in generator.permutation(trained)[: int(len(trained) * VALIDATION_FRACTION)].tolist():
                records[i] = replace(records[i], split=VALIDATION)
    return ForgetRequest(Hierarchy(records), request.partition, request.general)


class ValidationSet:
    """What is asked in a trial: of each group the questions with the split `validation`, else its trained ones.

    What a model says of a target it was never trained on is estimated by asking the unedited model the target's
    questions about images of other nodes of the level: how often is the target's answer right there? Where there is no
    image to put in another's place, it is chance.
    """

    def __init__(self, request: ForgetRequest, seed: int = 0) -> None:
        self._request, self._generator = request, np.random.default_rng(seed)
        self.groups = {group: self._sample(indices) for group, indices in request.partition.groups.items() if indices}
        self._images = _images_by_depth(request)
        self._counterfactual = [record for index in self.groups["target"] for record in self._about_others(index)]

    def probabilities(self, score: Callable[[Sequence[Record]], Scores]) -> dict[str, float]:
        """Mean answer probability by group."""
        records = self._request.hierarchy.records
        prompts = [index for indices in self.groups.values() for index in indices]
        values = score([records[i] for i in prompts]).answer_probability.tolist()
        probability = dict(zip(prompts, values, strict=True))
        return {group: float(np.mean([probability[i] for i in indices])) for group, indices in self.groups.items()}

    def never_trained(self, score: Callable[[Sequence[Record]], Scores]) -> float:
        if self._counterfactual:
            return float(score(self._counterfactual).answer_probability.mean())
        return mean_over(chance_accuracy(self._request.hierarchy, self._request.partition), self.groups["target"])

    def _sample(self, indices: Sequence[int]) -> list[int]:
        records = self._request.hierarchy.records
        validation = [i for i in indices if records[i].split == VALIDATION]
        candidates = validation or [i for i in indices if not records[i].held_out] or list(indices)
        return sorted(self._generator.permutation(candidates)[:MAX_QUESTIONS].tolist())

    def _about_others(self, index: int) -> list[Record]:
        record = self._request.hierarchy.records[index]
        if record.image is None:
            return []
        images = [image for image in self._images.get(len(record.path), ()) if image != record.image]
        drawn = self._generator.permutation(len(images))[:COUNTERFACTUAL_IMAGES].tolist()
        return [replace(record, image=images[i]) for i in drawn]


def _images_by_depth(request: ForgetRequest) -> Mapping[int, list[Path | bytes]]:
    """Depth of a node -> the images of the retained records at that depth, each once."""
    images: dict[int, dict[Path | bytes, None]] = defaultdict(dict)
    for record in (request.hierarchy.records[i] for i in request.partition.retained):
        if record.image is not None:
            images[len(record.path)][record.image] = None
    return {depth: list(unique) for depth, unique in images.items()}


def run_search(
    search: Search,
    questions: ValidationSet,
    score: Callable[[Sequence[Record]], Scores],
    edited: Callable[[float], AbstractContextManager[None]],
    on_trial: Callable[[], None],
) -> Choice:
    """The strongest forgetting of the grid at which siblings lose no more than `max_retain_drop` and others no more
    than half of it, and at which the target is not made less probable than if it had never been trained on.

    Both grow weaker along the grid, so that a search by halves finds it.

    Args:
        score: asks the model as it is.
        edited: the model is edited with this value while the context lasts.
        on_trial: called after each trial.

    Raises:
        InputError: with every value they lose more.
    """
    before, never = questions.probabilities(score), questions.never_trained(score)
    trials: dict[float, Trial] = {}

    def trial(value: float) -> Trial:
        if value not in trials:
            with edited(value):
                after = questions.probabilities(score)
            drop = {group: before[group] - after[group] for group in ALLOWED if group in before}
            trials[value] = Trial(value, after["target"], drop)
            on_trial()
        return trials[value]

    def acceptable(value: float) -> bool:
        result = trial(value)
        return result.within(search.max_retain_drop) and result.forget_probability >= never

    low, high = 0, len(search.grid)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if acceptable(search.grid[middle]) else (middle + 1, high)
    best = trial(search.grid[min(low, len(search.grid) - 1)])
    if not best.within(search.max_retain_drop):
        name = search.setting.replace("_", " ")
        message = f"even with a {name} of {best.value:g} {_drops(best)}; allow more, or give a {name}"
        raise InputError(message, argument="max_retain_drop", value=search.max_retain_drop)
    stronger = trials.get(search.grid[low - 1]) if 0 < low < len(search.grid) else None
    reason = _reason(best, stronger, never, search.max_retain_drop)
    return Choice(search.setting, best.value, search.max_retain_drop, before, never, tuple(trials.values()), reason)


def _reason(best: Trial, stronger: Trial | None, never: float, max_retain_drop: float) -> str:
    effect = f"the target's answers fall to a probability of {best.forget_probability:.2f}, {_drops(best)}"
    if best.forget_probability < never:
        return f"{effect}; never trained on, they would have {never:.2f}, but nothing weaker was tried"
    if stronger is None:
        return f"{effect}; nothing stronger was tried"
    if not stronger.within(max_retain_drop):
        return f"{effect}; with {stronger.value:g} {_drops(stronger)}"
    further = f"with {stronger.value:g} to {stronger.forget_probability:.2f}"
    return f"{effect}; {further}, and never trained on they would have {never:.2f}"


def _drops(trial: Trial) -> str:
    names = {"siblings": "siblings", "other": "others"}
    return " and ".join(f"{names[group]} lose {max(0.0, drop):.3f}" for group, drop in trial.retain_drop.items())
