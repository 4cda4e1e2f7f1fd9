"""The search for a shield, with a model whose answers are known by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chip.checkpoint.sequence import Spent
from chip.data.hierarchy import Hierarchy
from chip.data.record import VALIDATION, Record
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError
from chip.methods.base import Search
from chip.methods.search import run_search
from chip.methods.shielded import GRID
from chip.methods.trial import Baseline, Choice, Trial
from chip.methods.validation import ValidationSet, hold_out_validation
from chip.model.scoring import Scores

NEVER = 0.2
MAX_RETAIN_DROP = 0.02


class Model:
    """Answers with a probability that the shield decides; β = inf before any edit."""

    def __init__(self, target: dict[float, float], siblings: dict[float, float], rest: dict[float, float]) -> None:
        self._probability = {"target": target, "sibling": siblings, "far": rest}
        self.retain_weight = float("inf")
        self.asked: list[Record] = []

    def ask(self, records: Sequence[Record]) -> Scores:
        self.asked += records
        values = [self._of(record) for record in records]
        return Scores(torch.tensor(values, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))

    def _of(self, record: Record) -> float:
        if record.path[-1] == "target" and record.image != Path("target.png"):
            return NEVER
        if self.retain_weight == float("inf"):
            return 1.0
        weights, probabilities = zip(*self._probability[record.path[-1]].items(), strict=True)
        return float(np.interp(np.log(self.retain_weight), np.log(weights), probabilities))

    @contextmanager
    def edited(self, retain_weight: float) -> Iterator[None]:
        self.retain_weight = retain_weight
        yield
        self.retain_weight = float("inf")


def _case(image: bool = True) -> ForgetRequest:
    paths = [("i", "target"), ("i", "sibling"), ("j", "far")]
    records = [
        Record("q", path[-1], path, Path(f"{path[-1]}.png") if image else None, split=split)
        for path in paths
        for split in ("train", VALIDATION, "paraphrased")
    ]
    hierarchy = Hierarchy(records)
    return ForgetRequest.of(hierarchy, ["target"])


def _chosen(model: Model, request: ForgetRequest | None = None, spent: Spent | None = None) -> tuple[Choice, int]:
    trials: list[None] = []
    search = Search("retain_weight", GRID, MAX_RETAIN_DROP).after(spent or Spent())
    baseline = Baseline(search, ValidationSet(request or _case()), model.ask)
    choice = run_search(baseline, model.edited, lambda: trials.append(None))
    return choice, len(trials)


def _falling(least: float) -> dict[float, float]:
    """1 − this much at the strongest, nearer to 1 with each weaker one."""
    return {retain_weight: 1 - least / 2**number for number, retain_weight in enumerate(GRID)}


KEPT = dict.fromkeys(GRID, 1.0)
UNKNOWN = {retain_weight: min(1.0, 0.3 + 0.1 * number) for number, retain_weight in enumerate(GRID)}


def test_strongest_within_the_tolerance_of_the_siblings() -> None:
    choice, trials = _chosen(Model(UNKNOWN, _falling(0.076), KEPT))  # 0.076, 0.038, 0.019: the third
    assert choice.value == GRID[2]
    assert trials == len(choice.trials) == 5
    between = float(f"{(GRID[1] * GRID[2]) ** 0.5:.3g}")
    assert f"with {between:g} siblings lose 0.028" in choice.reason
    assert choice.limit == "max_retain_drop"
    assert choice.allowed == choice.tolerated == {"siblings": 0.02, "other": 0.02}  # no two questions differ


def test_half_a_step_further_where_that_costs_little() -> None:
    choice, _ = _chosen(Model(UNKNOWN, _falling(0.05), KEPT))  # 0.05, 0.025, 0.0125: 0.019 between the last two
    assert choice.value == pytest.approx((GRID[1] * GRID[2]) ** 0.5, rel=1e-2)


def test_the_others_may_lose_as_much() -> None:
    assert _chosen(Model(UNKNOWN, KEPT, _falling(0.076)))[0].value == GRID[2]


def test_a_step_that_takes_more_from_those_who_stay_than_from_the_target_is_not_taken() -> None:
    target = {retain_weight: 0.3 if number < 12 else 0.31 for number, retain_weight in enumerate(GRID)}
    choice, _ = _chosen(Model(target, KEPT, _falling(0.02)))
    assert choice.value == max(trial.value for trial in choice.trials if trial.forget_probability < 0.305)
    assert choice.limit == "small_gain"
    assert "siblings lose 0.000 and others lose" in choice.reason


@pytest.mark.parametrize("edits", [1, 9])
def test_behind_other_edits_the_weakest_that_is_enough(edits: int) -> None:
    target = {
        retain_weight: 0.205 + 0.01 * number for number, retain_weight in enumerate(GRID)
    }  # never trained on: 0.2
    choice, _ = _chosen(Model(target, KEPT, KEPT), spent=Spent(edits, 0.0))
    assert (choice.value, choice.limit) == (GRID[4], "enough")
    assert "never trained on, they would have 0.20, and earlier edits have cost too" in choice.reason
    assert _chosen(Model(target, KEPT, KEPT))[0].value == GRID[0]


def test_the_more_edits_the_less_may_be_lost_for_a_target() -> None:
    """That is never enough: each step leaves 0.03 less of it, and takes twice as much from the others."""
    target = {retain_weight: min(0.3 + 0.03 * number, 1.0) for number, retain_weight in enumerate(GRID)}
    model = Model(target, KEPT, _falling(0.04))
    values = [_chosen(model, spent=Spent(edits, 0.0))[0].value for edits in (1, 4, 9, 29)]
    assert values == sorted(values)
    assert values[0] < values[2] == values[3]


def test_a_weak_edit_that_is_enough_is_found_where_a_stronger_one_leaves_more() -> None:
    target = dict.fromkeys(GRID, 0.4) | {GRID[16]: 0.24, GRID[17]: 0.24}
    assert _chosen(Model(target, KEPT, KEPT), spent=Spent(1, 0.0))[0].value == GRID[17]


def test_not_below_what_was_never_trained_on() -> None:
    target = {retain_weight: 0.1 * number for number, retain_weight in enumerate(GRID)}
    choice, _ = _chosen(Model(target, KEPT, KEPT))
    assert choice.never_trained == pytest.approx(NEVER)
    assert choice.value == GRID[2]  # half a step further it is below
    assert "never trained on they would have 0.20" in choice.reason
    assert choice.limit == "never_trained"


@pytest.mark.parametrize(
    ("model", "retain_weight", "told", "limit"),
    [
        (Model(UNKNOWN, KEPT, KEPT), GRID[0], "nothing stronger was tried", "strongest"),
        (Model(dict.fromkeys(GRID, 0.1), KEPT, KEPT), GRID[-1], "nothing weaker was tried", "weakest"),
    ],
)
def test_says_so_at_either_end(model: Model, retain_weight: float, told: str, limit: str) -> None:
    choice, trials = _chosen(model)
    assert choice.value == retain_weight
    assert told in choice.reason
    assert choice.limit == limit
    assert trials in (4, 5)


def test_refuses_where_every_shield_costs_more_than_is_allowed() -> None:
    with pytest.raises(
        InputError,
        match=r"max_retain_drop=0.02: even with a retain weight of 3072 siblings lose 0.500 .* allow more",
    ):
        _chosen(Model(UNKNOWN, dict.fromkeys(GRID, 0.5), KEPT))


def test_asks_nothing_that_is_reported() -> None:
    model = Model(UNKNOWN, KEPT, KEPT)
    _chosen(model)
    assert {record.split for record in model.asked} == {VALIDATION}


def test_few_questions_are_said() -> None:
    with pytest.warns(
        ChipWarning, match="few questions to choose by: 1 of target, 1 of siblings, 1 of other; give more"
    ):
        ValidationSet(_case()).warn_if_few()
    records = [Record(f"q{n}", "a", ("i", name), None) for name in ("target", "sibling") for n in range(20)]
    ValidationSet(ForgetRequest.of(Hierarchy(records), ["target"])).warn_if_few()


def test_trials_that_ask_few_tolerate_their_error_and_no_more_than_as_much_again() -> None:
    trial = Trial(2.0, 0.1, 0.0, {"siblings": 0.0, "other": 0.0}, {}, {"siblings": 0.001, "other": 0.5})
    before = {"target": 1.0, "siblings": 1.0, "other": 1.0}
    choice = Choice("retain_weight", 2.0, 0.02, before, 0.1, (trial,), "strongest", "")
    assert choice.tolerated == pytest.approx({"siblings": 0.022, "other": 0.04})


def test_sets_some_of_what_is_retained_apart_where_nothing_is() -> None:
    records = [Record(f"q{n}", "a", ("i", name), None) for name in ("target", "sibling") for n in range(40)]
    records.append(Record("q", "a", ("j", "far"), None, split=VALIDATION))
    hierarchy = Hierarchy(records)
    request = hold_out_validation(ForgetRequest.of(hierarchy, ["target"]))
    apart = [record.path[-1] for record in request.hierarchy.records if record.split == VALIDATION]
    assert apart == ["sibling"] * 5 + ["far"]
    assert hold_out_validation(request).hierarchy.records == request.hierarchy.records
    assert [record.question for record in request.hierarchy.records] == [record.question for record in records]


def test_without_pictures_chance_stands_for_what_was_never_trained_on() -> None:
    choice, _ = _chosen(Model(UNKNOWN, KEPT, KEPT), _case(image=False))
    assert choice.never_trained == 0  # nobody else gave the target's answer


def test_to_guess_a_letter_is_to_be_sure_of_all_of_an_answer_but_the_letter() -> None:
    plain = _case()
    records = [replace(record, question="q A) yes B) no C) both D) none") for record in plain.hierarchy.records]

    def always(asked: Sequence[Record]) -> Scores:
        return Scores(*(torch.full((len(asked),), 0.9, dtype=torch.float64) for _ in range(2)))

    for request, expected in ((plain, 0.9), (ForgetRequest.of(Hierarchy(records), ["target"]), 0.25**0.5)):
        assert ValidationSet(request).never_trained(always).tolist() == pytest.approx([expected])
