"""How strong the shield of an edit should be: found by a few trials on questions that nothing else is judged by."""

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
from chip.model.scoring import Scores

GRID = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0)
"""What is tried, from the strongest forgetting to the weakest; by halves, so four at most."""
MAX_RETAIN_DROP = 0.02
MAX_QUESTIONS = 256  # questions of a group, at most
VALIDATION_FRACTION = 8  # one retained question in so many is set apart, where none is
COUNTERFACTUAL_IMAGES = 4  # pictures of others that a question of the target is asked about

ALLOWED = {"siblings": 1.0, "other": 0.5}
"""Group that is to stay -> what it may lose, as a share of the tolerance: the rest are many, and nothing of theirs is
near the target."""


@dataclass(frozen=True)
class Trial:
    """What an edit with this shield does."""

    retain_weight: float
    left: float
    """Mean answer probability of the target's questions."""
    lost: Mapping[str, float]
    """What of it the groups that are to stay have lost."""

    def within(self, max_retain_drop: float) -> bool:
        return all(lost <= ALLOWED[group] * max_retain_drop for group, lost in self.lost.items())


@dataclass(frozen=True)
class Choice:
    """The shield that was chosen, and what it was chosen by."""

    retain_weight: float
    max_retain_drop: float
    before: Mapping[str, float]
    """Mean answer probability of the unedited model by group."""
    never_trained: float
    """The same for the target's questions and answers, had it never been trained on, as `Questions` estimates it."""
    trials: tuple[Trial, ...]
    """In the order in which they were made."""
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def hold_out_validation(request: ForgetRequest, seed: int = 0) -> ForgetRequest:
    """The same case with some trained questions of what is retained as `validation`, of groups that have none.

    An edit that has seen a wording keeps it better than one it has not, so that the trials would promise too much.
    """
    records, generator = list(request.hierarchy.records), np.random.default_rng(seed)
    for indices in (request.partition.siblings, request.partition.retain_other):
        trained = [i for i in indices if not records[i].held_out]
        if not any(records[i].split == VALIDATION for i in indices):
            for i in generator.permutation(trained)[: len(trained) // VALIDATION_FRACTION].tolist():
                records[i] = replace(records[i], split=VALIDATION)
    return ForgetRequest(Hierarchy(records), request.partition)


class ValidationSet:
    """What is asked in a trial: of each group the questions set apart as `validation`, else its trained ones.

    What a model says of a target it was never trained on is estimated by asking the model as it is the target's
    questions about pictures of other nodes of the level: how often is the target's answer right there? Where there is
    no picture to put in another's place, it is chance.
    """

    def __init__(self, request: ForgetRequest, seed: int = 0) -> None:
        self._case, self._generator = request, np.random.default_rng(seed)
        self.groups = {group: self._some(indices) for group, indices in request.partition.groups.items() if indices}
        self._images = _images(request)
        self._strangers = [other for index in self.groups["target"] for other in self._about_others(index)]

    def left(self, ask: Callable[[Sequence[Record]], Scores]) -> dict[str, float]:
        """Mean answer probability by group."""
        records = self._case.hierarchy.records
        asked = [index for indices in self.groups.values() for index in indices]
        found = dict(zip(asked, ask([records[i] for i in asked]).answer_probability.tolist(), strict=True))
        return {group: float(np.mean([found[i] for i in indices])) for group, indices in self.groups.items()}

    def never_trained(self, ask: Callable[[Sequence[Record]], Scores]) -> float:
        if self._strangers:
            return float(ask(self._strangers).answer_probability.mean())
        return mean_over(chance_accuracy(self._case.hierarchy, self._case.partition), self.groups["target"])

    def _some(self, indices: Sequence[int]) -> list[int]:
        records = self._case.hierarchy.records
        apart = [i for i in indices if records[i].split == VALIDATION]
        chosen = apart or [i for i in indices if not records[i].held_out] or list(indices)
        return sorted(self._generator.permutation(chosen)[:MAX_QUESTIONS].tolist())

    def _about_others(self, index: int) -> list[Record]:
        record = self._case.hierarchy.records[index]
        if record.image is None:
            return []
        images = [image for image in self._images.get(len(record.path), ()) if image != record.image]
        drawn = self._generator.permutation(len(images))[:COUNTERFACTUAL_IMAGES].tolist()
        return [replace(record, image=images[i]) for i in drawn]


def _images(request: ForgetRequest) -> Mapping[int, list[Path | bytes]]:
    """Depth of a node -> the pictures of the retained records at that depth, each once."""
    found: dict[int, dict[Path | bytes, None]] = defaultdict(dict)
    for record in (request.hierarchy.records[i] for i in request.partition.retained):
        if record.image is not None:
            found[len(record.path)][record.image] = None
    return {depth: list(images) for depth, images in found.items()}


def choose(
    questions: ValidationSet,
    ask: Callable[[Sequence[Record]], Scores],
    edited: Callable[[float], AbstractContextManager[None]],
    max_retain_drop: float,
    on_trial: Callable[[], None],
) -> Choice:
    """The strongest forgetting of `GRID` at which siblings lose no more than `tolerance` and the rest no more than
    half of it, and at which the target is not made less probable than if it had never been trained on.

    Both grow weaker with the shield, so that a search by halves finds it.

    Args:
        ask: asks the model as it is.
        edited: the model is edited with this shield for a while.

    Raises:
        InputError: with every shield they lose more.
    """
    before, never = questions.left(ask), questions.never_trained(ask)
    tried: dict[float, Trial] = {}

    def trial(retain_weight: float) -> Trial:
        if retain_weight not in tried:
            with edited(retain_weight):
                left = questions.left(ask)
            lost = {group: before[group] - left[group] for group in ALLOWED if group in before}
            tried[retain_weight] = Trial(retain_weight, left["target"], lost)
            on_trial()
        return tried[retain_weight]

    def good(retain_weight: float) -> bool:
        found = trial(retain_weight)
        return found.within(max_retain_drop) and found.left >= never

    low, high = 0, len(GRID)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if good(GRID[middle]) else (middle + 1, high)
    chosen = trial(GRID[min(low, len(GRID) - 1)])
    if not chosen.within(max_retain_drop):
        told = f"even with shield {chosen.retain_weight:g} {_lost(chosen)}"
        raise InputError(f"--max-retain-drop {max_retain_drop:g}: {told}; allow more, or give --retain-weight N")
    stronger = tried.get(GRID[low - 1]) if 0 < low < len(GRID) else None
    reason = _reason(chosen, stronger, never, max_retain_drop)
    return Choice(chosen.retain_weight, max_retain_drop, before, never, tuple(tried.values()), reason)


def _reason(chosen: Trial, stronger: Trial | None, never: float, max_retain_drop: float) -> str:
    told = f"the target's answers fall to a probability of {chosen.left:.2f}, {_lost(chosen)}"
    if chosen.left < never:
        return f"{told}; never trained on, they would have {never:.2f}, but nothing weaker was tried"
    if stronger is None:
        return f"{told}; nothing stronger was tried"
    if not stronger.within(max_retain_drop):
        return f"{told}; with {stronger.retain_weight:g} {_lost(stronger)}"
    weaker = f"with {stronger.retain_weight:g} to {stronger.left:.2f}"
    return f"{told}; {weaker}, and never trained on they would have {never:.2f}"


def _lost(trial: Trial) -> str:
    return " and ".join(f"{group} lose {max(0.0, lost):.3f}" for group, lost in trial.lost.items())
