"""What an edit is held against: never-trained models, what those who stay may lose, and records that are in both."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from chip.checkpoint.sequence import Drift, EditSequence, Spent
from chip.data.counterfactual import OTHERS
from chip.data.hierarchy import Hierarchy, Node
from chip.data.overlap import count_overlap
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.errors import InputError, RunError
from chip.evaluation.never_trained import never_trained_accuracy
from chip.evaluation.summary import BeforeAfter, GroupResult
from chip.methods.trial import Choice, Trial
from chip.model.scoring import Scores
from chip.report.edit_report import EditReport, Sampled
from chip.report.outcome import Outcome
from chip.report.text.edit import print_edit


def request(images: bool = True) -> ForgetRequest:
    """A target with three questions, one of them held out, and five siblings who were asked the same."""
    records = [
        Record(question, f"{name}{question}", ("i", name), Path(f"{name}.png") if images else None, split=split)
        for name in "abcdef"
        for question, split in (("q", "train"), ("r", "train"), ("s", "paraphrased"))
    ]
    return ForgetRequest.of(Hierarchy(records), ["a"])


def test_never_trained_is_asked_about_images_of_others() -> None:
    asked: list[Record] = []

    def score(records: Sequence[Record]) -> Scores:
        asked.extend(records)
        hits = torch.tensor([float(record.question == "r") for record in records], dtype=torch.float64)
        return Scores(hits, hits / 2)

    assert never_trained_accuracy(request(), score) == 0.5
    assert len(asked) == 2 * OTHERS
    assert {record.path for record in asked} == {("i", "a")}
    assert Path("a.png") not in {record.image for record in asked}
    assert {record.question for record in asked} == {"q", "r"}


def test_who_knows_a_question_by_its_options_is_taken_to_guess() -> None:
    given = request()
    records = [
        replace(record, question=f"{record.question} A) yes B) no C) both") for record in given.hierarchy.records
    ]

    def always(records: Sequence[Record]) -> Scores:
        hits = torch.ones(len(records), dtype=torch.float64)
        return Scores(hits, hits)

    assert never_trained_accuracy(given, always) == 1.0
    assert never_trained_accuracy(ForgetRequest.of(Hierarchy(records), ["a"]), always) == 1 / 3


def test_without_images_never_trained_is_chance() -> None:
    def nobody(records: Sequence[Record]) -> Scores:
        raise AssertionError(records)

    assert never_trained_accuracy(request(images=False), nobody) == 0.0
    records = request(images=False).hierarchy.records
    common = [replace(record, answer="yes" if record.question == "q" else record.answer) for record in records]
    assert never_trained_accuracy(ForgetRequest.of(Hierarchy(common), ["a"]), nobody) == 0.5


def test_records_of_both_are_counted(tmp_path: Path) -> None:
    for name, content in (("a.png", b"one"), ("copy.png", b"one"), ("b.png", b"two"), ("c.png", b"three")):
        (tmp_path / name).write_bytes(content)
    target = [
        Record(q, "yes", ("i", "a"), image) for q, image in (("q", tmp_path / "a.png"), ("r", None), ("s", b"two"))
    ]

    def overlap(*others: tuple[str, str, Path | bytes | None]) -> int:
        retained = [Record(question, answer, ("i", "b"), image) for question, answer, image in others]
        return count_overlap(ForgetRequest.of(Hierarchy([*target, *retained]), ["a"]))

    assert overlap(("Q", "Yes.", tmp_path / "copy.png")) == 1  # the same, for a model
    assert overlap(("r", "yes", None), ("r", "yes", None), ("s", "yes", tmp_path / "b.png")) == 2
    images = (tmp_path / "b.png", tmp_path / "c.png", tmp_path / "missing.png", tmp_path, None)
    assert overlap(*(("q", "yes", image) for image in images)) == 0
    assert overlap(("q", "no", tmp_path / "a.png"), ("other", "yes", tmp_path / "a.png")) == 0


def result(exact: tuple[float, float | None], probability: tuple[float, float | None] = (1.0, 1.0)) -> GroupResult:
    return GroupResult(10, 0.1, BeforeAfter(*exact), BeforeAfter(*probability))


def choice(error: float = 0.0) -> Choice:
    trials = (
        Trial(2.0, 0.1, 0.0, {"siblings": 0.0, "other": 0.0}, {}, {"siblings": error, "other": error}),
        Trial(1.0, 0.1, 0.0, {"siblings": 0.5, "other": 0.0}, {}, {"siblings": 0.2, "other": 0.2}),
    )
    before = {"target": 1.0, "siblings": 1.0, "other": 1.0}
    return Choice("retain_weight", 2.0, 0.02, before, 0.1, trials, "max_retain_drop", "why")


GROUPS = {
    "target": {"trained": result((1.0, 0.15)), "paraphrased": result((0.9, 0.25))},
    "siblings": {"trained": result((1.0, 0.9), (1.0, 0.97))},
    "other": {"trained": result((1.0, 1.0), (1.0, 0.995)), "paraphrased": result((1.0, 0.5), (1.0, 0.5))},
}


def test_the_worse_wording_counts_against_never_trained() -> None:
    outcome = Outcome.of(GROUPS, never_trained=0.1)
    assert (outcome.known, outcome.left, outcome.left_of) == (1.0, 0.25, "10 paraphrased questions")
    assert outcome.max_left == pytest.approx(0.2)
    assert outcome.forgotten is False
    assert Outcome.of(GROUPS, never_trained=0.16).forgotten is True
    assert Outcome.of(GROUPS, never_trained=0.1, max_left=0.25).forgotten is True
    unwritten = Outcome.of({"target": {"trained": result((1.0, None))}}, 0.1)
    assert (unwritten.left, unwritten.forgotten, unwritten.lost) == (None, None, {})


def test_a_target_is_known_where_never_trained_is_clearly_less() -> None:
    for known, questions, is_known in (
        *((0.1, 1000, False), (0.149, 1000, False), (0.16, 1000, True)),
        *((0.16, 10, False), (0.28, 10, False), (0.3, 10, True)),  # by luck, 0.1 and two errors of 0.095
        *((0.5, 1, False), (1.0, 1, True)),
    ):
        target = replace(result((known, None)), count=questions)
        outcome = Outcome.of({"target": {"trained": target}}, 0.1)
        assert outcome.is_known == is_known
    outcome.check_known([Node(("i", "a"))])
    with pytest.raises(InputError, match=r"forget='i/a': the model does not .* 0.15 .* 0.12, by luck up to 0.17"):
        replace(outcome, known=0.15, never_trained=0.12, lucky=0.17).check_known([Node(("i", "a"))])


def test_what_a_search_promised_is_held_against_all_that_was_trained() -> None:
    Outcome.of(GROUPS, 0.1).check_kept()  # nobody promised anything
    broken = Outcome.of(GROUPS, 0.1, None, choice())
    assert {loss.group: loss.lost for loss in broken.excess} == {"siblings": pytest.approx(0.03)}
    with pytest.raises(RunError, match=r"siblings lose 0.030 of their answers' probability and may lose 0.02: "):
        broken.check_kept()
    Outcome.of(GROUPS, 0.1, None, choice(error=0.006)).check_kept()  # two errors more are within what was tried
    far = Outcome.of(GROUPS | {"other": {"trained": result((1, 1), (1.0, 0.959))}}, 0.1, None, choice(error=1.0))
    with pytest.raises(RunError, match=r"others lose 0.041 of "):  # twice as much is too much at any rate
        far.check_kept()


@pytest.mark.parametrize(("exact", "lost"), [(0.9, None), (0.87, 0.03), (0.85, 0.05)])
def test_exact_answers_are_promised_too(exact: float, lost: float | None) -> None:
    """Of ten questions one may go at any rate."""
    groups = GROUPS | {"siblings": {"trained": result((1.0, exact), (1.0, 1.0))}}
    outcome = Outcome.of(groups, 0.1, None, choice())
    assert {loss.group: loss.lost for loss in outcome.excess} == ({"siblings": pytest.approx(lost)} if lost else {})
    if lost == 0.05:
        with pytest.raises(RunError, match=r"siblings lose 0.050 of their exact answers and may lose 0.02"):
            outcome.check_kept()
    else:
        outcome.check_kept()


def last_line(outcome: Outcome, found: Choice | None, **settings: float) -> str:
    console = Console(file=io.StringIO(), width=60, highlight=False)
    print_edit(EditReport("shielded", settings, None, "out", 1.0, True, {}, {}, {}, outcome, found), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()[-1]


def test_the_last_line_says_what_was_achieved_and_what_was_not() -> None:
    assert last_line(Outcome.of(GROUPS, 0.1, None, choice()), choice()) == (
        "not forgotten, the target is still there: "
        "the model gives 0.25 of the target's answers (10 paraphrased questions), "
        "one never trained on it would give 0.10, and 0.20 would count as forgotten; "
        "siblings keep 0.90 of 1.00, others keep 1.00 of 1.00; "
        "siblings lose 0.030 of their answers' probability, where 0.02 was allowed (accepted); "
        "a stronger edit would have cost those who stay more than --max-retain-drop allows; "
        "to forget more, allow more with --max-retain-drop, or give another --retain-weight than 2"
    )
    assert last_line(Outcome.of(GROUPS, 0.2), None, retain_weight=8.0) == (
        "forgotten: the model gives 0.25 of the target's answers (10 paraphrased questions), "
        "one never trained on it would give 0.20; siblings keep 0.90 of 1.00, others keep 1.00 of 1.00"
    )
    left = Outcome.of(GROUPS, 0.1)
    assert last_line(left, None, retain_weight=8.0).endswith("a --retain-weight below 8 may forget more")
    assert last_line(left, None).endswith("stronger settings or another --method may forget more")


@pytest.mark.parametrize(
    ("output", "told"), [("out", ("edit", 0.03, "since the first")), (None, ("would be edit", 0.013, "before it"))]
)
def test_a_later_edit_says_what_all_have_cost(output: str | None, told: tuple[str, float, str]) -> None:
    """Two trained groups of as many questions, which have lost 0.03 and 0.005 in this edit, and 0.0128 before."""
    console, (verb, lost, when) = Console(file=io.StringIO(), width=300, highlight=False), told
    sequence, spent = EditSequence(3, ["a" * 64], {}, {"w": Drift(2.0, 4.0)}), Spent(2, 0.0128)
    report = EditReport("shielded", {}, None, output, 1.0, True, {}, {}, GROUPS, Outcome.of(GROUPS, 0.1))
    print_edit(replace(report, sequence=sequence, spent=spent), console)
    assert isinstance(console.file, io.StringIO)
    assert (
        f"\n{verb} 3 of a sequence: the edits add up to 0.50 times the norm of what they changed, most in w: 0.50; "
        f"those who stay have lost {lost:.3f} of their answers' probability {when}\n"
    ) in console.file.getvalue()


def test_what_was_drawn_of_very_many_records_is_said_with_its_interval() -> None:
    sampled = Sampled(1_000_000, 10_600, 10_608, 0, {"other": (0.981, 0.994)})
    outcome, console = Outcome.of(GROUPS, 0.1), Console(file=io.StringIO(), width=300, highlight=False)
    print_edit(EditReport("shielded", {}, None, "out", 1.0, True, {}, {}, {}, outcome, sampled=sampled), console)
    assert isinstance(console.file, io.StringIO)
    assert (
        "of 1,000,000 records the edit goes by 10,600, and 10,608 were asked (drawn by institution, seed 0; "
        "--all-records takes all); exact match of all, by 95 % intervals: others 0.981 to 0.994"
    ) in console.file.getvalue()
