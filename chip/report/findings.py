"""What the figures of an evaluation permit one to say, as numbers and decisions; the sentences are the templates'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from chip.evaluation.rows import ResultRow
from chip.report.comparison import Excesses, Loss

Tone = Literal["good", "bad", "open"]
"""`open`: the figures do not decide it."""

Headline = Literal["left", "brought back", "not compared", "too few questions", "suppressed"]
"""`brought back`: by attacks. `not compared`: there is no reference."""

Answer = Literal[
    # to any question
    "not asked",
    "unknown",  # too few questions for an interval, or no reference
    # about the target, and under attack
    "more",  # than is expected
    "unnoticed",  # nothing has shown, but more than `CLOSE` could have gone unnoticed
    "no more",
    # about what must stay
    "not compared",
    "less",  # than the reference; also of the target, where that is over-forgetting
    "loss possible",
    "no loss where asked",
    "no loss",
    # beside a model that never knew the target, with `less`, `more` and `unnoticed`
    "other probabilities",
    "alike",
]

Caveat = Literal[
    "attacks not tested",
    "attacks missing",
    "attacks undecided",
    "loss",
    "loss possible",
    "over-forgetting",
    "over-forgetting possible",
    "stands out",
]
"""What a headline must not leave out, even where it is short."""


@dataclass(frozen=True)
class Finding:
    answer: Answer
    tone: Tone
    caveat: Caveat | None


@dataclass(frozen=True)
class TargetFinding(Finding):
    """Does it still answer about the target?"""

    rows: tuple[ResultRow, ...]
    """Exact match by split."""
    expected: tuple[ResultRow, ...]
    """The reference's exact match; without one, chance."""
    by_task: Mapping[str, ResultRow]
    """Kind of question -> how many of those are answered, in the worse wording."""
    few_questions: Mapping[str, int]
    """Kind of question -> how many there are, where they are too few to say something of it."""
    excesses: Excesses
    leak: ResultRow | None
    """For how many questions a right answer was among those drawn at random."""
    reference_leak: ResultRow | None


@dataclass(frozen=True)
class AttackFinding(Finding):
    """Do attacks bring it back? Rows are of the worse wording."""

    steps: int
    strongest: ResultRow | None
    """The step at which most is answered; None where no step was asked."""
    strongest_reference: ResultRow | None
    unattacked: ResultRow | None
    excesses: Excesses
    not_run: tuple[str, ...]
    """Of `ATTACKS`."""
    impossible: tuple[str, ...]
    """Attacks that were asked for and gave no figure: without images, none can be left out."""
    skipped: Mapping[str, str]
    """Attacks, or steps of them, that were asked for and lacked something -> what."""


@dataclass(frozen=True)
class RetainedFinding(Finding):
    """Does it still answer what must stay? Rows are of the worse wording."""

    rows: tuple[tuple[ResultRow, ResultRow | None], ...]
    """Of each group, and the reference's."""
    losses: Mapping[Loss, tuple[str, ...]]
    """The groups of each kind; empty without a reference."""
    lost: Mapping[str, float]
    """Group -> by how much less than the reference it is answered, where that is certain."""
    worse_reference: tuple[str, ...]
    """Groups about which the reference, which should know them as well, answers less than this model."""


@dataclass(frozen=True)
class Membership:
    """The score of membership inference that tells most."""

    row: ResultRow
    reference: ResultRow | None
    side: int
    """See `apart`."""


@dataclass(frozen=True)
class LikenessFinding(Finding):
    """Does it look like a model that never knew the target?"""

    excesses: Excesses
    membership: Membership | None
    p_value: float | None
    """Of the truth ratios against the reference's, the smaller one of both wordings."""
    told_apart: bool
    """By this p-value."""


@dataclass(frozen=True)
class Findings:
    """In the order in which they are asked for, under a headline no stronger than they are."""

    headline: Headline
    target: TargetFinding
    attacks: AttackFinding
    retained: RetainedFinding
    likeness: LikenessFinding

    @property
    def caveats(self) -> list[Caveat]:
        findings = (self.target, self.attacks, self.retained, self.likeness)
        return [finding.caveat for finding in findings if finding.caveat is not None]
