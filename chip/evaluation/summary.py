"""How much of each group of records a model still answers, before and after an edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chip.data.chance import chance_accuracy, mean_over
from chip.data.request import ForgetRequest
from chip.evaluation.bootstrap import interval, means
from chip.evaluation.rows import SPLITS, in_split
from chip.model.scoring import Scores


@dataclass(frozen=True)
class BeforeAfter:
    before: float
    after: float | None
    """None where nothing was written."""


@dataclass(frozen=True)
class GroupResult:
    """One group of records, trained or paraphrased: means over its records."""

    count: int
    chance: float
    exact_match: BeforeAfter
    answer_probability: BeforeAfter

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize(request: ForgetRequest, before: Scores, after: Scores | None) -> dict[str, dict[str, GroupResult]]:
    """The scores as means by group (`target`, `siblings`, `other`) and by split, where it has records."""
    chance = chance_accuracy(request.hierarchy, request.partition)
    summary: dict[str, dict[str, GroupResult]] = {}
    for group, members in request.partition.groups.items():
        summary[group] = {}
        for split in SPLITS:
            indices = [i for i in members if in_split(request.hierarchy.records[i], split)]
            if indices:
                summary[group][split] = GroupResult(
                    len(indices),
                    mean_over(chance, indices),
                    _before_after("exact_match", indices, before, after),
                    _before_after("answer_probability", indices, before, after),
                )
    return summary


def exact_match_intervals(full: ForgetRequest, asked: ForgetRequest, scores: Scores) -> dict[str, tuple[float, float]]:
    """Group of which some records only were asked -> 95 % interval of its exact match: whole patients are drawn."""
    result = {}
    for group, members in asked.partition.groups.items():
        if len(members) < len(full.partition.groups[group]):
            patients = [asked.hierarchy.records[index].path[:2] for index in members]
            result[group] = interval(means(scores.exact_match[list(members)].numpy(), patients, 0, group))
    return result


def _before_after(measure: str, indices: Sequence[int], before: Scores, after: Scores | None) -> BeforeAfter:
    return BeforeAfter(
        mean_over(getattr(before, measure), indices),
        None if after is None else mean_over(getattr(after, measure), indices),
    )
