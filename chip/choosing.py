"""How strong the shield of an edit should be: found by a few trials on questions that nothing else is judged by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chip.errors import InputError
from chip.evaluation.metrics import chances, mean
from chip.hierarchy import Hierarchy
from chip.operators.base import Case
from chip.records import VALIDATION, Record
from chip.vlm.scoring import Scores

SHIELDS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0)
"""What is tried, from the strongest forgetting to the weakest; by halves, so four at most."""
TOLERANCE = 0.02
ASKED = 256  # questions of a group, at most
APART = 8  # one retained question in so many is set apart, where none is
STRANGERS = 4  # pictures of others that a question of the target is asked about

ALLOWED = {"siblings": 1.0, "rest": 0.5}
"""Group that is to stay -> what it may lose, as a share of the tolerance: the rest are many, and nothing of theirs is
near the target."""


@dataclass(frozen=True)
class Trial:
    """What an edit with this shield does."""

    shield: float
    left: float
    """Mean answer probability of the target's questions."""
    lost: Mapping[str, float]
    """What of it the groups that are to stay have lost."""

    def within(self, tolerance: float) -> bool:
        return all(lost <= ALLOWED[group] * tolerance for group, lost in self.lost.items())


@dataclass(frozen=True)
class Choice:
    """The shield that was chosen, and what it was chosen by."""

    shield: float
    tolerance: float
    before: Mapping[str, float]
    """Mean answer probability of the unedited model by group."""
    never_trained: float
    """The same for the target's questions and answers, had it never been trained on, as `Questions` estimates it."""
    trials: tuple[Trial, ...]
    """In the order in which they were made."""
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def set_apart(case: Case, seed: int = 0) -> Case:
    """The same case with some trained questions of what is retained as `validation`, of groups that have none.

    An edit that has seen a wording keeps it better than one it has not, so that the trials would promise too much.
    """
    records, generator = list(case.hierarchy.records), np.random.default_rng(seed)
    for indices in (case.split.siblings, case.split.rest):
        trained = [i for i in indices if not records[i].held_out]
        if not any(records[i].split == VALIDATION for i in indices):
            for i in generator.permutation(trained)[: len(trained) // APART].tolist():
                records[i] = replace(records[i], split=VALIDATION)
    return Case(Hierarchy(records), case.split)


class Questions:
    """What is asked in a trial: of each group the questions set apart as `validation`, else its trained ones.

    What a model says of a target it was never trained on is estimated by asking the model as it is the target's
    questions about pictures of other nodes of the level: how often is the target's answer right there? Where there is
    no picture to put in another's place, it is chance.
    """

    def __init__(self, case: Case, seed: int = 0) -> None:
        self._case, self._generator = case, np.random.default_rng(seed)
        self.groups = {group: self._some(indices) for group, indices in case.split.groups.items() if indices}
        self._images = _images(case)
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
        return mean(chances(self._case.hierarchy, self._case.split), self.groups["target"])

    def _some(self, indices: Sequence[int]) -> list[int]:
        records = self._case.hierarchy.records
        apart = [i for i in indices if records[i].split == VALIDATION]
        chosen = apart or [i for i in indices if not records[i].held_out] or list(indices)
        return sorted(self._generator.permutation(chosen)[:ASKED].tolist())

    def _about_others(self, index: int) -> list[Record]:
        record = self._case.hierarchy.records[index]
        if record.image is None:
            return []
        images = [image for image in self._images.get(len(record.path), ()) if image != record.image]
        drawn = self._generator.permutation(len(images))[:STRANGERS].tolist()
        return [replace(record, image=images[i]) for i in drawn]


def _images(case: Case) -> Mapping[int, list[Path | bytes]]:
    """Depth of a node -> the pictures of the retained records at that depth, each once."""
    found: dict[int, dict[Path | bytes, None]] = defaultdict(dict)
    for record in (case.hierarchy.records[i] for i in case.split.retained):
        if record.image is not None:
            found[len(record.path)][record.image] = None
    return {depth: list(images) for depth, images in found.items()}


def choose(
    questions: Questions,
    ask: Callable[[Sequence[Record]], Scores],
    edited: Callable[[float], AbstractContextManager[None]],
    tolerance: float,
    on_trial: Callable[[], None],
) -> Choice:
    """The strongest forgetting of `SHIELDS` at which siblings lose no more than `tolerance` and the rest no more than
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

    def trial(shield: float) -> Trial:
        if shield not in tried:
            with edited(shield):
                left = questions.left(ask)
            lost = {group: before[group] - left[group] for group in ALLOWED if group in before}
            tried[shield] = Trial(shield, left["target"], lost)
            on_trial()
        return tried[shield]

    def good(shield: float) -> bool:
        found = trial(shield)
        return found.within(tolerance) and found.left >= never

    low, high = 0, len(SHIELDS)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if good(SHIELDS[middle]) else (middle + 1, high)
    chosen = trial(SHIELDS[min(low, len(SHIELDS) - 1)])
    if not chosen.within(tolerance):
        told = f"even with shield {chosen.shield:g} {_lost(chosen)}"
        raise InputError(f"--tolerance {tolerance:g}: {told}; allow more, or give --shield N")
    stronger = tried.get(SHIELDS[low - 1]) if 0 < low < len(SHIELDS) else None
    reason = _reason(chosen, stronger, never, tolerance)
    return Choice(chosen.shield, tolerance, before, never, tuple(tried.values()), reason)


def _reason(chosen: Trial, stronger: Trial | None, never: float, tolerance: float) -> str:
    told = f"the target's answers fall to a probability of {chosen.left:.2f}, {_lost(chosen)}"
    if chosen.left < never:
        return f"{told}; never trained on, they would have {never:.2f}, but nothing weaker was tried"
    if stronger is None:
        return f"{told}; nothing stronger was tried"
    if not stronger.within(tolerance):
        return f"{told}; with {stronger.shield:g} {_lost(stronger)}"
    return f"{told}; with {stronger.shield:g} to {stronger.left:.2f}, and never trained on they would have {never:.2f}"


def _lost(trial: Trial) -> str:
    return " and ".join(f"{group} lose {max(0.0, lost):.3f}" for group, lost in trial.lost.items())
