"""What a trial edit does to the target and to those who stay, and what is chosen by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from chip.data.record import Record
from chip.data.request import STAYING
from chip.general.loss import GeneralLoss
from chip.methods.base import Search
from chip.methods.validation import Answers, ValidationSet
from chip.model.scoring import Scores

MAX_ENDED_DROP = 0.02
"""What may be lost of the part of general answers that end by themselves."""

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
stronger is wanted, gates were enough or better than a search, or the grid ended, at the strongest forgetting or,
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

    @classmethod
    def of(
        cls,
        value: float,
        before: Mapping[str, Answers],
        after: Mapping[str, Answers],
        excess: float,
        general: GeneralLoss | None,
    ) -> Trial:
        """From what was answered before and after, by group."""
        groups = [group for group in STAYING if group in before]
        losses = {group: before[group].probability - after[group].probability for group in groups}
        exact = {group: before[group].exact_match - after[group].exact_match for group in groups}
        return cls(
            value,
            float(after["target"].probability.mean()),
            excess,
            {group: float(loss.mean()) for group, loss in losses.items()},
            {group: float(loss.mean()) - 1 / len(loss) for group, loss in exact.items()},
            {group: float(loss.std() / np.sqrt(len(loss))) for group, loss in losses.items()},
            general,
        )

    @property
    def lost(self) -> Mapping[str, float]:
        """What each group that is to stay has lost, of its answers' probability or of its exact answers."""
        return {group: max(drop, self.exact_drop[group], 0.0) for group, drop in self.retain_drop.items()}

    def cost(self, search: Search) -> float:
        """What is left of the target, and what those who stay lose."""
        left = self.forget_probability if search.enough is None else max(self.forget_excess, search.enough)
        return left + search.loss_weight * sum(self.lost.values())

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

    @property
    def effect(self) -> str:
        """All of it in words."""
        fall = f"the target's answers fall to a probability of {self.forget_probability:.2f}"
        return ", ".join(filter(None, (fall, self.losses, self.general_loss)))

    @property
    def losses(self) -> str:
        """What siblings and others lose, in words."""
        names = {"siblings": "siblings", "other": "others"}
        return " and ".join(f"{names[group]} lose {drop:.3f}" for group, drop in self.lost.items())

    @property
    def general_loss(self) -> str:
        """What general data loses, in words; empty where there is none."""
        if self.general is None:
            return ""
        ends = f" and {self.general.ended_drop:.2f} of its endings" if self.general.ended_drop > MAX_ENDED_DROP else ""
        return f"general text moves by {self.general.kl:.4f} nats a token{ends}"


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


class Baseline:
    """What the model answers before it is edited, with which each trial is compared."""

    def __init__(
        self,
        search: Search,
        questions: ValidationSet,
        score: Callable[[Sequence[Record]], Scores],
        general: Callable[[], GeneralLoss | None] = lambda: None,
    ) -> None:
        """
        Args:
            score: asks the model as it is.
            general: what the model as it is has lost of general data; None where none is watched.
        """
        self.search, self._questions, self._score, self._general = search, questions, score, general
        self._before, self._never = questions.ask(score), questions.never_trained(score)

    @property
    def expected(self) -> float:
        """Mean answer probability of the target's questions, had the model never been trained on it."""
        return float(self._never.mean())

    def compare(self, value: float) -> Trial:
        """The model as it is now, edited with this value."""
        after, loss = self._questions.ask(self._score), self._general()
        excess = self._questions.excess(after["target"].probability, self._never)
        return Trial.of(value, self._before, after, excess, loss)

    def choice(self, setting: str, best: Trial, trials: Sequence[Trial], limit: Limit, reason: str) -> Choice:
        """What was found, of all the trials."""
        means = {group: float(answers.probability.mean()) for group, answers in self._before.items()}
        return Choice(
            setting,
            best.value,
            self.search.max_retain_drop,
            means,
            self.expected,
            tuple(trials),
            limit,
            reason,
            None if best.general is None else self.search.max_general_kl,
        )
