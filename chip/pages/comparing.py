"""A model's figures beside those of the reference, or of chance: what is more, what is less, what may have gone
unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from chip.evaluation.rows import NO_ATTACK, SPLITS, Evaluation, ResultRow
from chip.pages.words import between, points, share, signed

CLOSE = 0.1
"""The largest difference that may have gone unnoticed where the page says that there is none."""


@dataclass(frozen=True)
class Excess:
    """By how much more is answered about the target than something else lets one expect."""

    value: float
    low: float
    high: float
    """95 % interval; NaN where there is none."""
    count: int
    """Questions it was measured on."""

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return self.low == self.low

    @property
    def above(self) -> bool:
        return self.low > 0

    @property
    def below(self) -> bool:
        return self.high < 0

    @property
    def unnoticed(self) -> float:
        """The most there may be without having shown."""
        return max(0.0, self.high + _unseen(self.low, self.high, self.count))

    @property
    def unnoticed_below(self) -> float:
        """By how much it may fall short without having shown."""
        return max(0.0, _unseen(self.low, self.high, self.count) - self.low)

    def __str__(self) -> str:
        """Without the sign of the figure: `6 points (1 to 11)`."""
        if not self.low < self.high:
            return points(self.value)
        ends = (self.low, self.high) if self.value >= 0 else (-self.high, -self.low)
        return f"{points(self.value)} ({' to '.join(map(signed, ends))})"


class Loss(Enum):
    """How what is answered about a group that must stay stands to what the reference answers."""

    LOST = "less, and the intervals lie apart"
    DOUBTFUL = "less by more than `CLOSE`, but the intervals overlap"
    KEPT = "a loss of more than `CLOSE` would have shown"
    UNKNOWN = "nothing of these: too little was asked"


def reference_of(found: Evaluation) -> Evaluation:
    """The reference as an evaluation of its own, in which nothing is found where there is none."""
    return replace(found, rows=found.reference or (), reference=None)


def by_split(found: Evaluation, group: str, measure: str) -> list[ResultRow]:
    """The figure for trained and for paraphrased wordings, without an attack, as far as they are there."""
    return [row for split in SPLITS if (row := found.find(group, split, measure)) is not None]


def told(row: ResultRow, how: Callable[[float], str] = share) -> str:
    """A figure with its interval, as far as it has one: `17% (11–23%)`."""
    interval = between(row.low, row.high, how)
    return f"{how(row.value)} ({interval})" if interval else how(row.value)


def excesses(found: Evaluation, splits: Iterable[str] = SPLITS, attack: str = NO_ATTACK) -> Mapping[str, Excess]:
    """By split, where there is something to compare with: see `excess`."""
    return {split: each for split in splits if (each := excess(found, split, attack)) is not None}


def excess(found: Evaluation, split: str, attack: str = NO_ATTACK) -> Excess | None:
    """Of what is answered about the target over what the reference answers.

    Without a reference over chance, or, under attack, over what is answered without it.
    """
    own = found.find("target", split, "exact_match", attack)
    if own is None:
        return None
    if found.reference is not None:
        above = found.find("target", split, "exact_match_above_retrained", attack)
        return None if above is None else Excess(above.value, above.low, above.high, own.count)
    base = found.find("target", split, "chance" if attack == NO_ATTACK else "exact_match")
    if base is None:
        return None
    return Excess(own.value - base.value, own.low - base.value, own.high - base.value, own.count)


def loss(found: Evaluation, group: str) -> Loss:
    """Of a group that must stay, beside the reference; the worse of trained and paraphrased wordings counts."""
    pairs = _beside(found, group)
    if any(own.high < other.low for own, other in pairs):
        return Loss.LOST
    if any(own.value < other.value - CLOSE for own, other in pairs):
        return Loss.DOUBTFUL
    if pairs and all(_unnoticed_loss(own, other) <= CLOSE for own, other in pairs):
        return Loss.KEPT
    return Loss.UNKNOWN


def largest_loss(found: Evaluation, group: str) -> float:
    """By how much less than the reference it answers about a group, in the wordings where that is most."""
    return max((other.value - own.value for own, other in _beside(found, group)), default=0.0)


def apart(own: ResultRow, other: ResultRow) -> int:
    """1 or −1 where a figure lies above or below another, and their intervals do not meet; else 0."""
    return int(own.low > other.high) - int(own.high < other.low)


def _beside(found: Evaluation, group: str) -> list[tuple[ResultRow, ResultRow]]:
    """The exact match of a group, and the reference's, by split."""
    others = {row.split: row for row in by_split(reference_of(found), group, "exact_match")}
    return [(own, others[own.split]) for own in by_split(found, group, "exact_match") if own.split in others]


def _unnoticed_loss(own: ResultRow, other: ResultRow) -> float:
    return other.high - own.low + _unseen(own.low, own.high, own.count)


def _unseen(low: float, high: float, questions: int) -> float:
    """What may hide where every fact gave the same, so that drawing from them again cannot but give the same, too.

    The rule of three: what did not occur among n may still have a share of 3 / n, at 95 %.
    """
    return 3 / max(questions, 1) if low == high else 0.0
