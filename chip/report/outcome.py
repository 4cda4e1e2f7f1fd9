"""What an edit achieved and what it cost, against what it should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from chip.data.hierarchy import Node
from chip.data.request import STAYING
from chip.errors import InputError, RunError
from chip.evaluation.summary import BeforeAfter, GroupResult
from chip.general.loss import GeneralLoss
from chip.methods.trial import Choice, Limit
from chip.report.formatting import RETAINED_NAMES, count

MARGIN = 0.10
"""How much more of a target's answers may be left than in a model that was never trained on it, by default."""
MIN_KNOWN = 0.05
"""How much more of a target's answers a model must give at least than one never trained on it, so that it can forget
it."""


@dataclass(frozen=True)
class ExcessLoss:
    """More than a group may lose."""

    group: str
    what: str
    """Of which the loss is a part."""
    lost: float
    allowed: float
    tolerated: float
    """What it may be found to be, as the trials asked some questions only: of exact answers, each of which counts as a
    whole, as much as is tolerated of their probability at most."""

    @property
    def is_tolerated(self) -> bool:
        return self.lost <= self.tolerated

    def __str__(self) -> str:
        return f"{RETAINED_NAMES[self.group]} lose {self.lost:.3f} of {self.what}"


@dataclass(frozen=True)
class Outcome:
    """What is left of the target and what the others kept, as exact match and as measured on the written files."""

    known: float
    """Part of the target's trained questions that the unedited model answers."""
    left: float | None
    """Part of the target's questions that is still answered, in the wordings, trained or paraphrased, where it is more;
    None where nothing was written."""
    left_of: str
    """The questions that `left` is of: `38 paraphrased questions`."""
    never_trained: float
    """What a model that was never trained on the target would answer of its trained questions, as estimated."""
    max_left: float
    """The most of `left` that counts as forgotten."""
    retained: Mapping[str, BeforeAfter]
    """Group that is to stay -> exact match of its trained questions."""
    lost: Mapping[str, float]
    """Group that is to stay -> what its trained questions lost of their mean answer probability; empty where nothing
    was written."""
    exact_lost: Mapping[str, float]
    """What they lost of their exact match, beyond a single question."""
    allowed: Mapping[str, float]
    """What they may lose of both; empty where no search promised anything."""
    tolerated: Mapping[str, float]
    """What of the probability may be found to be lost, as the trials asked some questions only."""
    limit: Limit | None
    """Why the search for a setting went no further; None where there was none."""
    general_kl: float | None = None
    """KL to the unedited model on held-out general data, nats a token; None where it was not measured."""
    max_general_kl: float | None = None
    """What it may be; None where no search promised anything."""
    lucky: float = 0.0
    """The most of `known` that a model which was never trained on the target may give by luck."""

    @classmethod
    def of(
        cls,
        groups: Mapping[str, Mapping[str, GroupResult]],
        never_trained: float,
        max_left: float | None = None,
        choice: Choice | None = None,
        general: GeneralLoss | None = None,
    ) -> Outcome:
        """From the figures by group and split; `max_left` is by default `MARGIN` above `never_trained`."""
        target = groups["target"]
        after = {split: result.exact_match.after for split, result in target.items()}
        left = {split: value for split, value in after.items() if value is not None}
        worst = max(left, key=lambda split: left[split], default="trained")
        stay = {
            group: splits["trained"] for group, splits in groups.items() if group in STAYING and "trained" in splits
        }
        probability = {group: result.answer_probability for group, result in stay.items()}
        retained = {group: result.exact_match for group, result in stay.items()}
        return cls(
            known=target["trained"].exact_match.before,
            lucky=never_trained + _luck(never_trained, target["trained"].count),
            left=left.get(worst),
            left_of=count(target[worst].count, f"{worst} question"),
            never_trained=never_trained,
            max_left=never_trained + MARGIN if max_left is None else max_left,
            retained=retained,
            lost={group: pair.before - pair.after for group, pair in probability.items() if pair.after is not None},
            exact_lost={
                group: max(pair.before - pair.after - 1 / stay[group].count, 0.0)
                for group, pair in retained.items()
                if pair.after is not None
            },
            allowed={} if choice is None else choice.allowed,
            tolerated={} if choice is None else choice.tolerated,
            limit=None if choice is None else choice.limit,
            general_kl=None if general is None else general.kl,
            max_general_kl=None if choice is None else choice.max_general_kl,
        )

    @property
    def is_known(self) -> bool:
        """Whether the unedited model knew the target at all."""
        return self.known > self.lucky

    @property
    def forgotten(self) -> bool | None:
        """Whether no more than `max_left` is left; None where nothing was written."""
        return None if self.left is None else self.left <= self.max_left

    @property
    def excess(self) -> Sequence[ExcessLoss]:
        """What was lost by the groups that lost more than they may."""
        of_both = (
            (self.lost, "their answers' probability", self.tolerated),
            (self.exact_lost, "their exact answers", {group: 2 * most for group, most in self.allowed.items()}),
        )
        return [
            ExcessLoss(group, what, lost[group], most, tolerated[group])
            for lost, what, tolerated in of_both
            for group, most in self.allowed.items()
            if lost.get(group, 0.0) > most
        ]

    def check_known(self, targets: Sequence[Node]) -> None:
        """Raise `InputError` where there is nothing to forget: an edit could only do harm, or bring something back."""
        if not self.is_known:
            message = (
                f"the model does not know it: it answers {self.known:.2f} of the trained questions, and one that was "
                f"never trained on them would answer {self.never_trained:.2f}, by luck up to {self.lucky:.2f}, as "
                "asking them about others' images estimates it; give the model that was trained on these records, or "
                "force the edit"
            )
            raise InputError(message, argument="forget", value=", ".join(map(str, targets)))

    def check_kept(self) -> None:
        """Raise `RunError` where those who stay, or general data, lost more than is tolerated."""
        if self.general_kl is not None and self.max_general_kl is not None and self.general_kl > self.max_general_kl:
            raise RunError(
                f"the model moves by {self.general_kl:.4f} nats a token on general data and may move by "
                f"{self.max_general_kl:g}; nothing was written; accept that, allow more, or give a setting yourself"
            )
        broken = [loss for loss in self.excess if not loss.is_tolerated]
        if broken:
            losses = " and ".join(f"{loss} and may lose {loss.allowed:g}" for loss in broken)
            raise RunError(
                f"of all trained questions, {losses}: the trials had shown less; nothing was written; accept that, "
                "allow more, or give a setting yourself"
            )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "forgotten": self.forgotten}


def _luck(never_trained: float, questions: int) -> float:
    """By how much the exact match of a model that was never trained on a target may be above its mean: two standard
    errors of so many questions. Of a few that is as much as they can show, so that half of what is left is enough."""
    error = sqrt(never_trained * (1 - never_trained) / questions)
    return max(MIN_KNOWN, min(2 * error, (1 - never_trained) / 2))
