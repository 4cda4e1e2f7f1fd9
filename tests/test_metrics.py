"""Measures on cases whose answer is known by hand."""

from __future__ import annotations

import pytest
import torch

from chip.data.chance import chance_accuracy, count_options
from chip.data.hierarchy import Hierarchy
from chip.data.record import Record
from chip.data.request import ForgetRequest, Partition
from chip.evaluation.quantizers import round_to_nearest
from chip.evaluation.summary import summarize
from chip.model.scoring import Scores

COLOR = "Which color?"
CHOICE = "Which? A) one B) two C) three D) four"


def _record(
    patient: str, answer: str, question: str = COLOR, task: str = "generation", partition: str = "train"
) -> Record:
    return Record(question, answer, ("i", patient), None, task, partition)


RECORDS = [
    _record("target", "red"),
    _record("target", "blue"),
    _record("target", "green"),
    _record("target", "B", CHOICE, "classification"),
    _record("target", "alone", "Asked nowhere else?"),
    _record("a", "red"),
    _record("b", "red"),
    _record("c", "blue", partition="paraphrased"),
]


def _case() -> ForgetRequest:
    hierarchy = Hierarchy(RECORDS)
    return ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find("target")]))


def test_chance_is_the_most_common_answer_of_the_others() -> None:
    request = _case()
    chance = chance_accuracy(request.hierarchy, request.partition).tolist()
    # Without the target: red 2, blue 1. Without a: red 2 (target's, b's), blue 2. Without c: red 3, blue 1.
    assert chance == [1, 0, 0, 0.25, 0, 0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("question", "count"),
    [
        (CHOICE, 4),
        ("(A) left (B) right", 2),
        ("A. yes B. no C. maybe", 3),
        ("What is vitamin A) good for?", 1),
        ("Why?", 0),
    ],
)
def test_options_are_counted(question: str, count: int) -> None:
    assert count_options(question) == count


def test_groups_are_means_over_their_records() -> None:
    request = _case()
    before = Scores(torch.ones(8, dtype=torch.float64), torch.full((8,), 0.9, dtype=torch.float64))
    after = Scores(
        torch.tensor([0, 0, 1, 0, 0, 1, 0, 1], dtype=torch.float64), torch.full((8,), 0.5, dtype=torch.float64)
    )
    groups = summarize(request, before, after)
    assert groups["target"]["trained"].count == 5
    assert groups["target"]["trained"].exact_match.after == pytest.approx(0.2)
    assert groups["target"]["trained"].chance == pytest.approx(0.25)
    assert groups["siblings"]["trained"].exact_match.after == 0.5
    assert groups["siblings"]["paraphrased"].exact_match.after == 1
    assert groups["siblings"]["paraphrased"].answer_probability.before == pytest.approx(0.9)
    assert groups["other"] == {}


def test_rounding_keeps_sixteen_levels_a_group_and_is_idempotent() -> None:
    weight = torch.randn(6, 70, generator=torch.Generator().manual_seed(0))
    rounded = round_to_nearest(weight, bits=4, group=32)
    assert rounded.shape == weight.shape
    for row, group in ((0, slice(0, 32)), (3, slice(32, 64)), (5, slice(64, 70))):
        assert len(torch.unique(rounded[row, group])) <= 15
        scale = weight[row, group].abs().max() / 7
        assert (rounded[row, group] - weight[row, group]).abs().max() <= scale / 2 * 1.0001
    torch.testing.assert_close(round_to_nearest(rounded), rounded)
    assert torch.equal(round_to_nearest(torch.zeros(2, 5)), torch.zeros(2, 5))
