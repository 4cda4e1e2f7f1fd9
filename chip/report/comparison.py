"""A model's figures beside those of the reference, or of chance: what is more, what is less, what may have gone
unnoticed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from math import isnan

from chip.evaluation.rows import HELD_OUT, NO_ATTACK, SPLITS, WORST, Evaluation, ResultRow

CLOSE = 0.1
"""The largest difference that may have gone unnoticed where a report says that there is none."""


@dataclass(frozen=True)
class Excess:
    """By how much more is answered about the target than something else lets one expect."""

    value: float
    low: float
    high: float
    """95 % interval."""
    count: int
    """Questions it was measured on."""


class Excesses(dict[str, Excess]):
    """Those that have an interval, by split, or by step of an attack the largest first."""

    @property
    def above(self) -> list[tuple[str, Excess]]:
        return [(name, excess) for name, excess in self.items() if excess.low > 0]

    @property
    def below(self) -> list[tuple[str, Excess]]:
        return [(name, excess) for name, excess in self.items() if excess.high < 0]

    @property
    def unnoticed(self) -> float:
        """The most there may be in any without having shown; 0 without excesses."""
        return max([0.0, *(excess.high + _unseen(excess) for excess in self.values())])

    @property
    def unnoticed_below(self) -> float:
        """By how much any may fall short without having shown; 0 without excesses."""
        return max([0.0, *(_unseen(excess) - excess.low for excess in self.values())])


class Loss(StrEnum):
    """How what is answered about a group that must stay stands to what the reference answers."""

    LOST = "lost"  # less, and the intervals lie apart
    DOUBTFUL = "doubtful"  # less by more than `CLOSE`, but the intervals overlap
    EXCLUDED = "excluded"  # a loss of more than `CLOSE` would have shown
    UNKNOWN = "unknown"  # nothing of these: too little was asked


def reference_of(evaluation: Evaluation) -> Evaluation:
    """The reference as an evaluation of its own, in which nothing is found where there is none."""
    return replace(evaluation, rows=evaluation.reference or (), reference=None)


def same_row(evaluation: Evaluation, row: ResultRow) -> ResultRow | None:
    """The figure of another model that `row` compares with; None where it was not measured."""
    return evaluation.find(row.group, row.split, row.measure, row.attack)


def by_split(evaluation: Evaluation, group: str, measure: str) -> list[ResultRow]:
    """The figure for trained and for paraphrased wordings, without an attack, as far as they are there."""
    return [row for split in SPLITS if (row := evaluation.find(group, split, measure)) is not None]


def general_rows(evaluation: Evaluation) -> list[ResultRow]:
    """The figures of general ability."""
    return [row for row in evaluation.rows if row.split == HELD_OUT]


def steps(evaluation: Evaluation, kind: str | None = None) -> list[str]:
    """The steps at which the target was asked, in their order; of one kind of attack, or of all."""
    attacks = (row.attack for row in evaluation.rows if (row.group, row.measure) == ("target", "exact_match"))
    return [
        attack
        for attack in dict.fromkeys(attacks)
        if attack != NO_ATTACK and (kind is None or attack.startswith(f"{kind}: "))
    ]


def excesses(evaluation: Evaluation) -> Excesses:
    """Of what is answered about the target over what the reference answers; without one over chance."""
    return _known((split, _excess(evaluation, split, NO_ATTACK)) for split in SPLITS)


def attack_excesses(evaluation: Evaluation, attacks: Iterable[str]) -> Excesses:
    """Of what is answered about the target, in the worse wording, over what the reference answers under the same
    attack; without one over what is answered without an attack."""
    known = _known((attack, _excess(evaluation, WORST, attack)) for attack in attacks)
    return Excesses(sorted(known.items(), key=lambda pair: -pair[1].value))


def _known(pairs: Iterable[tuple[str, Excess | None]]) -> Excesses:
    return Excesses((name, excess) for name, excess in pairs if excess is not None and not isnan(excess.low))


def _excess(evaluation: Evaluation, split: str, attack: str) -> Excess | None:
    own = evaluation.find("target", split, "exact_match", attack)
    if own is None:
        return None
    if evaluation.reference is not None:
        above = evaluation.find("target", split, "exact_match_above_retrained", attack)
        return None if above is None else Excess(above.value, above.low, above.high, own.count)
    base = evaluation.find("target", split, "chance" if attack == NO_ATTACK else "exact_match")
    if base is None:
        return None
    return Excess(own.value - base.value, own.low - base.value, own.high - base.value, own.count)


def loss(evaluation: Evaluation, group: str) -> Loss:
    """Of a group that must stay, beside the reference; the worse of trained and paraphrased wordings counts."""
    pairs = _beside(evaluation, group)
    if any(own.high < other.low for own, other in pairs):
        return Loss.LOST
    if any(own.value < other.value - CLOSE for own, other in pairs):
        return Loss.DOUBTFUL
    if pairs and all(_unnoticed_loss(own, other) <= CLOSE for own, other in pairs):
        return Loss.EXCLUDED
    return Loss.UNKNOWN


def largest_loss(evaluation: Evaluation, group: str) -> float:
    """By how much less than the reference it answers about a group, in the wordings where that is most."""
    return max((other.value - own.value for own, other in _beside(evaluation, group)), default=0.0)


def apart(own: ResultRow, other: ResultRow | None) -> int:
    """1 or −1 where a figure lies above or below another, and their intervals do not meet; else 0."""
    return 0 if other is None else int(own.low > other.high) - int(own.high < other.low)


def _beside(evaluation: Evaluation, group: str) -> list[tuple[ResultRow, ResultRow]]:
    """The exact match of a group, and the reference's, by split."""
    others = {row.split: row for row in by_split(reference_of(evaluation), group, "exact_match")}
    return [(own, others[own.split]) for own in by_split(evaluation, group, "exact_match") if own.split in others]


def _unnoticed_loss(own: ResultRow, other: ResultRow) -> float:
    return other.high - own.low + _unseen(own)


def _unseen(figure: ResultRow | Excess) -> float:
    """What may hide where every fact gave the same, so that drawing from them again cannot but give the same, too.

    The rule of three: what did not occur among n may still have a share of 3 / n, at 95 %.
    """
    return 3 / max(figure.count, 1) if figure.low == figure.high else 0.0
