"""The benchmark's run: its order, what it may look at, that it goes on after a stop, and means and tables by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
from torch import Tensor

from benchmarks.forgetting import __main__ as command
from benchmarks.forgetting import gates, models, running, tuning
from benchmarks.forgetting.bounds import checks
from benchmarks.forgetting.figures import ABOVE, ALL, DISTANCE, ResultRow, all_rows, mean_rows, rows_of, samples
from benchmarks.forgetting.gates import Gate
from benchmarks.forgetting.jobs import Model, Request, Scope, requests
from benchmarks.forgetting.judging import Judge, packed, unpacked
from benchmarks.forgetting.methods import METHODS, BenchmarkMethod, Retrained, RetrainedAgain, Untouched
from benchmarks.forgetting.methods.edits import ShieldedEdit
from benchmarks.forgetting.models import trained
from benchmarks.forgetting.pictures import draw
from benchmarks.forgetting.questions import MAX_QUESTIONS, REPORTED, questions
from benchmarks.forgetting.results import NAN, Result
from benchmarks.forgetting.row_files import read_results, write_results
from benchmarks.forgetting.running import Job, WorkerContext, best_of, first_jobs, rival_jobs
from benchmarks.forgetting.store import Store, atomic_write, method_key
from benchmarks.forgetting.subjects import Worlds
from benchmarks.forgetting.summaries import OUR, Place, tables
from benchmarks.forgetting.tables import NONE, lacking, markdown
from benchmarks.forgetting.tuning import score, tuned_method
from benchmarks.forgetting.worlds import World, clinic
from benchmarks.forgetting.worlds.files import write
from chip.checkpoint.layout import Checkpoint
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.demo.corpus import Recipe
from chip.errors import RunError
from chip.evaluation.config import EvalConfig
from chip.evaluation.outputs import EvalOutputs
from chip.evaluation.rows import GAP
from chip.methods import Shielded
from chip.model.loading import VLM

MODEL = Model("ward", "llava", 0)
APPLIED: list[tuple[str, float, set[str]]] = []
"""Method, strength and the splits it saw, of each time that a stub was applied."""


@dataclass(frozen=True)
class Stub(BenchmarkMethod):
    """Scales the weights of one layer."""

    name: ClassVar[str] = "stub"
    source: ClassVar[str] = "this test"
    strength: float = 0.0

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(strength) for strength in (3.0, 0.5)]

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        APPLIED.append((self.name, self.strength, {record.split for record in request.hierarchy.records}))
        name = next(name for name in source.entries if name.endswith("down_proj.weight"))
        return {name: source.read(name).float() * (1 + self.strength)}


class Nothing(BenchmarkMethod):
    """Without settings."""

    name: ClassVar[str] = "stub"

    @classmethod
    def grid(cls) -> list[Self]:
        return []

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class Failing(Stub):
    name: ClassVar[str] = "failing"
    tuned: ClassVar[bool] = False

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        raise RunError("no solution")


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three cases of the clinic, of two of them something is to be forgotten."""
    plan = clinic.plan(3)
    kinds, cases = (*clinic.SHOWN[:2], *clinic.PRIVATE[:2]), ("case_1", "case_2", "case_3")
    facts = tuple(fact for fact in plan.facts if fact.path[1:2] in {(case,) for case in cases} and fact.kind in kinds)
    targets = {"privacy": tuple(("department_1", request, "private") for request in ("case_2", "case_3"))}
    return write("ward", 3, replace(plan, facts=facts, targets=targets), tmp_path_factory.mktemp("ward"))


@pytest.fixture(scope="module")
def checkpoints(ward: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with models of two seeds that have learned nothing, in no step."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHIP_CACHE", str(folder))
        patch.setitem(models.WORLD_RECIPES, ("ward", "llava"), Recipe(steps=0))
        for seed in (0, 1):
            trained(ward, "llava", seed, device="cpu")
            trained(ward, "llava", seed, ward.targets["privacy"], device="cpu")
    return folder / "forgetting" / "ward-3"


@pytest.fixture
def context(
    ward: World, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], WorkerContext]:
    """Opens a worker's context; nothing has been measured yet."""
    monkeypatch.setenv("CHIP_CACHE", str(tmp_path))
    monkeypatch.setitem(models.WORLD_RECIPES, ("ward", "llava"), Recipe(steps=0))
    monkeypatch.setattr(Worlds, "of", lambda self, name, seed=0: ward)
    for stub in (Stub, Failing):
        monkeypatch.setitem(METHODS, stub.name, stub)
    (tmp_path / "forgetting").mkdir()
    (tmp_path / "forgetting" / "ward-3").symlink_to(checkpoints)
    APPLIED.clear()
    return lambda: WorkerContext(tmp_path / "worlds", "cpu")


def request_of(world: World, number: int = 0) -> Request:
    return Request(MODEL, "privacy", world.targets["privacy"][number])


# --- the order ---


def test_every_table_grows_at_the_same_rate_and_seeds_come_last(ward: World) -> None:
    worlds = {
        "a": replace(ward, targets={"x": ("1", "2"), "y": ("3", "4", "5")}),
        "b": replace(ward, targets={"z": ("6",)}),
    }
    scope = Scope(("a", "b"), ("qwen2_5_vl", "llava"), (), seeds=2, targets=5)
    first = [(r.model.world, r.model.family, r.target) for r in requests(scope, worlds, 0, 5)]
    q, v = "qwen2_5_vl", "llava"
    assert first == [
        *(("a", q, "1"), ("a", q, "3"), ("a", v, "1"), ("a", v, "3"), ("b", q, "6"), ("b", v, "6")),
        *(("a", q, "2"), ("a", q, "4"), ("a", v, "2"), ("a", v, "4")),
        *(("a", q, "5"), ("a", v, "5")),
    ]
    assert requests(scope, worlds, 0, 2) == requests(scope, worlds, 0, 5)[:10]
    assert {r.model.family for r in requests(scope, worlds, 1, 5)} == {q}  # of the other there is one model
    there = requests(scope, worlds, 0, 5, lambda model, level: (model.family, level) == (v, "z"))
    assert [(r.model.world, r.target) for r in there] == [("b", "6")]


def test_scope_leaves_out_levels_and_targets(ward: World) -> None:
    worlds = {"a": replace(ward, targets={"x": ("1", "2"), "y": ("3",)})}
    scope = Scope(("a",), ("llava",), (), levels=("x",), targets=1)
    assert [r.target for r in requests(scope, worlds, 0, 5)] == ["1"]


def test_who_is_attacked(ward: World) -> None:
    first = [request_of(ward)]
    scope = Scope(("ward",), ("llava",), (OUR, "npo", "nullu"))

    def attacked(scope: Scope) -> set[str]:
        return {job.method for jobs in first_jobs(scope, first) for job in jobs if job.attacked}

    assert attacked(scope) == {"retrained", "untouched", OUR}
    second = [replace(first[0], model=replace(MODEL, seed=1))]  # there is a seed before
    assert {job.method for jobs in first_jobs(scope, second) for job in jobs if job.attacked} == {
        *("retrained", "retrained again", "untouched", OUR)
    }
    assert attacked(replace(scope, attacks=False)) == set()
    assert attacked(replace(scope, attacks_for=("npo",))) == {"retrained", "npo"}
    references = {Untouched.name: result(1.0), Retrained.name: result(0.4)}
    known = {first[0]: {**references, "npo": result(0.1), "idk": result(0.3), "nullu": result(NAN)}}
    assert rival_jobs(scope, first, known) == [Job(first[0], "idk", True)]
    assert best_of(running.RIVALS[0], replace(first[0], model=replace(MODEL, seed=2)), known) == "idk"
    assert best_of(running.RIVALS[0], replace(first[0], level="other"), known) is None


# --- which wordings ---


def test_questions_are_of_their_splits_and_of_whole_pictures(ward: World) -> None:
    target = ward.targets["privacy"][0]
    every = questions(ward, target, REPORTED)
    records = every.request.hierarchy.records
    assert {record.split for record in records} == set(REPORTED)
    assert sorted(i for of in every.groups.values() for i in of) == list(range(len(records)))
    assert {records[i].path for i in every.groups["target"]} == {tuple(target.split("/"))}
    fewer = questions(ward, target, REPORTED, most=20)
    assert len(fewer.groups["target"]) == len(every.groups["target"])
    records_of_fewer = fewer.request.hierarchy.records
    cousins = [records_of_fewer[i] for i in fewer.groups["cousins"]]
    assert 0 < len(cousins) < len(every.groups["cousins"])
    for image in {record.image for record in cousins}:
        same = [records[i] for i in every.groups["cousins"] if records[i].image == image]
        assert len([record for record in cousins if record.image == image]) == len(same)


def test_tuning_sees_no_reported_wording(
    ward: World, context: Callable[[], WorkerContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[Record] = []
    scores = vars(tuning)["score_records"]

    def spy(vlm: VLM, records: Sequence[Record]) -> object:
        prompts.extend(records)
        return scores(vlm, records)

    monkeypatch.setattr(tuning, "score_records", spy)
    assert tuned_method(Stub, context().subject(MODEL), "privacy", measure=False) is None
    best = tuned_method(Stub, context().subject(MODEL), "privacy")
    assert {record.split for record in prompts} == {"validation"}
    assert [strength for _, strength, _ in APPLIED] == [3.0, 0.5]
    assert all(splits == {"train"} for *_, splits in APPLIED)
    assert best == Stub(3.0)  # all alike on a model that knows nothing: the strongest
    assert tuned_method(Stub, context().subject(MODEL), "privacy") == best
    assert len(APPLIED) == 2
    assert tuned_method(Failing, context().subject(MODEL), "privacy") == Failing()


def test_the_score_by_hand() -> None:
    before = {"target": 0.9, "siblings": 0.8, "rest": 1.0}
    after = {"target": 0.5, "siblings": 0.6, "rest": 0.9}
    forgotten, retained = (0.9 - 0.5) / (0.9 - 0.1), 0.6 / 0.8
    assert score(before, after, 0.1) == pytest.approx(2 * forgotten * retained / (forgotten + retained))
    assert score(before, {**after, "target": 0.0, "siblings": 0.9, "rest": 1.0}, 0.1) == 1.0  # never above one
    assert score(before, before, 0.1) == 0.0
    assert score(before, {**after, "target": 0.95}, 0.1) == 0.0
    assert score(before, {**after, "rest": 0.0}, 0.1) == 0.0
    assert score(before, after, 0.95) == 0.0  # nothing above chance was known


# --- what is kept ---


def test_a_second_run_measures_nothing(
    ward: World, context: Callable[[], WorkerContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(ward)
    jobs = [Job(request, name, False) for name in ("retrained", "untouched", "stub", "failing")]
    first = context()
    assert not any(job.is_done(first) for job in jobs)
    for job in jobs:
        job.do(first)
        assert job.is_done(first)
    known = first.find(request, [job.method for job in jobs])
    assert known["failing"].error == "no solution"
    assert known["retrained"].value("target", "paraphrased", ABOVE) == 0
    assert known["stub"].changed_weights > 0

    monkeypatch.setattr(Stub, "apply", None)
    monkeypatch.setattr(Judge, "_outputs", None)
    second = context()
    for job in jobs:
        job.do(second)
    again = second.find(request, [job.method for job in jobs])
    assert json.dumps([one.to_json() for one in again.values()]) == json.dumps(
        [one.to_json() for one in known.values()]
    )
    assert not replace(jobs[2], attacked=True).is_done(second)
    assert not replace(jobs[2], request=request_of(ward, 1)).is_done(second)


def test_the_reference_of_the_seed_before_is_judged_like_a_method(
    ward: World, context: Callable[[], WorkerContext]
) -> None:
    first, opened = request_of(ward), context()
    second = replace(first, model=replace(MODEL, seed=1))
    for name in (Retrained.name, RetrainedAgain.name):
        Job(second, name, False).do(opened)
    known = opened.find(second, (Retrained.name, RetrainedAgain.name))
    references = [one.settings["reference"] for one in known.values()]
    assert references == [opened.subject(request.model).reference("privacy").name for request in (second, first)]
    assert known[RetrainedAgain.name].changed_weights > 0
    assert opened.find(first, [RetrainedAgain.name]) == {}


def test_a_killed_write_leaves_nothing_behind_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIP_CACHE", str(tmp_path))
    store, key = Store("results"), {"world": "ward", "target": "a"}

    def killed() -> None:
        with atomic_write(store.path(key)) as beside:
            beside.write_text('{"value": {"half')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert store.read(key) is None
    store.path(key).with_name(f".{store.path(key).stem}.1.json").write_text(
        '{"value": {"half'
    )  # of one that was killed
    assert store.read(key) is None
    store.write(key, {"value": NAN})
    assert np.isnan((store.read(key) or {})["value"])
    assert store.read({**key, "target": "b"}) is None


def test_what_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other, control = ShieldedEdit(), METHODS["npo"](), METHODS["random change"]()
    before = [method_key(method) for method in (ours, other, control)]
    assert method_key(replace(ours, retain_weight=2.0)) != before[0]
    monkeypatch.setattr(Shielded, "version", Shielded.version + 1)
    after = [method_key(method) for method in (ours, other, control)]
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, True, False]  # a control rests on ours


def test_a_renamed_setting_is_not_measured_again() -> None:
    renamed = make_dataclass("Stub", [("power", float, 0.0)], bases=(Nothing,), frozen=True)
    assert method_key(renamed(power=3.0)) == method_key(Stub(3.0))
    assert method_key(renamed(power=0.5)) != method_key(Stub(3.0))
    assert "strength" not in json.dumps(method_key(Stub(3.0)))


def test_what_the_reference_showed_is_read_as_it_was(ward: World) -> None:
    reported = questions(ward, ward.targets["privacy"][0], REPORTED, MAX_QUESTIONS)
    plan = EvalConfig(reported.request, known_groups=reported.groups)
    shown = EvalOutputs()
    shown.put("none", "exact_match", {0: 1.0, 2: 0.25}, 4)
    shown.membership["loss"] = np.array([1.0]), np.array([0.5, 2.0])
    read = unpacked(packed(shown), plan)
    assert read.values.keys() == shown.values.keys()
    np.testing.assert_array_equal(read.values["none", "exact_match"], shown.values["none", "exact_match"])
    np.testing.assert_array_equal(read.membership["loss"][1], [0.5, 2.0])
    assert len(read.never_trained) == len(plan.members)
    assert unpacked(packed(EvalOutputs()), plan) == EvalOutputs()


# --- rows ---


def result(target: float, siblings: float = 1.0, gap: float = NAN, attacked: bool = False, auc: float = 0.5) -> Result:
    """Made by hand."""
    figures = {
        ("target", "paraphrased", "exact_match", "none"): (target, NAN, NAN),
        ("siblings", "paraphrased", "exact_match", "none"): (siblings, 0.1, 0.9),
        (GAP, "paraphrased", "recovered_gap", "none"): (gap, NAN, NAN),
    }
    if attacked:
        figures |= {
            ("target", "paraphrased", "exact_match", "quantization: 4 bits"): (target + 0.2, NAN, NAN),
            ("target", "paraphrased", ABOVE, "quantization: 4 bits"): (0.2, NAN, NAN),
            ("target", "paraphrased", ABOVE, "cross-modal: jpeg"): (0.1, NAN, NAN),
            ("target", "paraphrased", ABOVE, "relearning: 10 steps"): (0.3, NAN, NAN),
            ("target", "trained", "auc_loss", "membership: unseen records"): (auc, NAN, NAN),
        }
    return Result(1, {"strength": 1.0}, attacked, 2.0, 1e6, 10.0, figures)


def results_by_hand(ward: World, attacked: bool = False) -> dict[Request, dict[str, Result]]:
    """Two targets of two seeds, one of them missing for ours."""
    known: dict[Request, dict[str, Result]] = {}
    gaps = iter((1.0, 0.8, 0.9))
    for seed in (0, 1):
        for target in ("a", "b"):
            results = {
                Untouched.name: result(1.0, 0.8, 0.0, attacked),
                Retrained.name: result(0.2, 0.8, 1.0, attacked, auc=0.45),
            }
            if (seed, target) != (1, "b"):
                results[OUR] = result(0.2, 0.72, next(gaps), attacked, auc=0.3)
            known[Request(replace(MODEL, seed=seed), "patient", target)] = results
    return known


def test_rows_are_read_as_they_were_written(ward: World, tmp_path: Path) -> None:
    rows = all_rows(results_by_hand(ward, attacked=True))
    write_results(tmp_path, rows)
    read = read_results(tmp_path / "ward.json")
    assert {row.target for row in read} == {ALL, "a", "b"}
    assert sorted(map(repr, read)) == sorted(repr(rounded(row)) for row in rows)
    places = tables(read)
    assert list(places) == list(tables(rows))
    for place, table in tables(rows).items():
        assert {name: list(line.means) for name, line in places[place].items()} == {
            name: list(line.means) for name, line in table.items()
        }
    text = (tmp_path / "ward.json").read_text()
    assert "NaN" not in text
    assert all(len(row.settings) == (row.method not in (Retrained.name,)) for row in read)
    write_results(tmp_path, read)
    assert (tmp_path / "ward.json").read_text() == text


def rounded(row: ResultRow) -> ResultRow:
    """Numbers as files have them."""
    value, low, high = (float(f"{number:.4g}") for number in (row.value, row.low, row.high))
    return replace(row, value=value, low=low, high=high)


def value(rows: list[ResultRow], group: str, measure: str, split: str = "paraphrased", method: str = OUR) -> ResultRow:
    (row,) = (r for r in rows if (r.method, r.group, r.split, r.measure) == (method, group, split, measure))
    return row


def test_kept_and_above_retrained_by_hand(ward: World) -> None:
    request, results = next(iter(results_by_hand(ward, attacked=True).items()))
    rows = list(rows_of(request, results))
    assert value(rows, "siblings", "kept").value == pytest.approx(0.72 / 0.8)
    attack = "auc_loss_above_retrained | membership: unseen records"
    assert value(rows, "target", attack, "trained").value == pytest.approx(0.3 - 0.45)
    assert value(rows, "target", "exact_match | quantization: 4 bits").value == pytest.approx(0.4)
    assert value(rows, "model", "seconds", "model").value == 2.0
    alone = list(rows_of(request, {OUR: results[OUR]}))
    assert not [row for row in alone if row.measure == "kept"]


def test_means_over_targets_and_seeds_by_hand(ward: World) -> None:
    known = results_by_hand(ward, attacked=True)
    rows = mean_rows(row for request, results in known.items() for row in rows_of(request, results))
    gap = value(rows, GAP, "recovered_gap")
    assert gap.value == pytest.approx((1.0 + 0.8 + 0.9) / 3)
    assert 0.8 <= gap.low <= gap.value <= gap.high <= 1.0
    assert (gap.target, gap.seed) == (ALL, ALL)
    counts = {name: value(rows, "model", name, "model").value for name in ("targets", "seeds", "results", "attacked")}
    assert counts == {"targets": 2, "seeds": 2, "results": 3, "attacked": 3}
    assert value(rows, "model", "failed", "model").value == 0


def test_failures_are_counted_and_not_averaged(ward: World) -> None:
    known = results_by_hand(ward)
    first = next(iter(known))
    known[first][OUR] = Result(1, {}, False, NAN, NAN, NAN, {}, "no solution")
    rows = all_rows(known)
    assert value(rows, "model", "failed", "model").value == pytest.approx(1 / 3)
    mean = next(row for row in rows if (row.target, row.method, row.measure) == (ALL, OUR, "recovered_gap"))
    assert mean.value == pytest.approx((0.8 + 0.9) / 2)


def test_an_interval_draws_targets_and_seeds(ward: World) -> None:
    assert samples(np.array([[0.5]])) is None
    drawn = samples(np.array([[0.0, 1.0], [np.nan, 1.0]]))
    assert drawn is not None
    # Of two targets the first is drawn twice in a quarter of all samples: then the mean is 0 but where only the second
    # seed was drawn, which has not measured it.
    assert (drawn == 0).mean() == pytest.approx(0.25 * 0.75 / (1 - 0.25 * 0.25), abs=0.03)
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()


# --- tables ---

PLACE: Place = ("ward", "llava", "patient")


def row(
    method: str, group: str, measure: str, value: float, target: str = ALL, split: str = "paraphrased"
) -> ResultRow:
    return ResultRow(*PLACE, target, ALL if target == ALL else 0, method, 1, {}, group, split, measure, value, NAN, NAN)


def made(method: str, gap: float, seconds: float, attacked: bool = False, target: float = 0.25) -> list[ResultRow]:
    """Rows of one method by hand, for two targets."""
    counts = {"targets": 2, "seeds": 1, "results": 2, "failed": 0, "seconds": seconds}
    return [
        row(method, GAP, "recovered_gap", gap),
        row(method, GAP, "recovered_gap", gap - 0.1, "a"),
        row(method, GAP, "recovered_gap", gap + 0.1, "b"),
        row(method, "siblings", "kept", 0.98),
        row(method, "siblings", "kept", 0.9, "a"),
        row(method, "unrelated", "kept", 1.0),
        row(method, "target", "exact_match", target),
        *(row(method, "model", name, number, split="model") for name, number in counts.items()),
        *(
            [
                row(method, "target", f"{ABOVE} | cross-modal: jpeg", 0.04),
                row(method, "target", f"{ABOVE} | quantization: 8 bits", 0.01),
                row(method, "target", f"{ABOVE} | relearning: 10 steps", 0.2),
                row(method, "target", "auc_loss_above_retrained | membership: x", 0.02, split="trained"),
                row(method, "target", "auc_min_k_above_retrained | membership: x", -0.15, split="trained"),
            ]
            if attacked
            else []
        ),
    ]


def page() -> list[ResultRow]:
    return [
        *made("npo", 1.1, 12.0, target=0.1),
        *made(OUR, 0.97, 3.0, attacked=True),
        *made("nullu", 0.5, 1.0, target=0.6),
        *made("chip", 0.1, 1.0, target=0.9),
        row(Retrained.name, "target", "exact_match", 0.2),
    ]


def test_the_bounds_by_hand() -> None:
    (table,) = tables(page()).values()
    assert list(table) == [Retrained.name, OUR, "chip", "nullu", "npo"]
    assert table["npo"].below_retrained
    assert not table[OUR].below_retrained
    assert table["npo"].harm == pytest.approx(0.1 + 0.02)  # recovering more of the gap than retraining is no success
    table[OUR].means["target", "paraphrased", DISTANCE] = row(
        OUR, "target", DISTANCE, 0.06
    )  # of each target, if stored
    assert table[OUR].distance == 0.06
    del table[OUR].means["target", "paraphrased", DISTANCE]
    known = {check.what: (round(check.value, 3), check.met, check.note) for check in checks(PLACE, table)}
    assert known == {
        "recovered gap ≥ 0.95": (0.97, True, ""),
        "recovered gap, worst ≥ 0.85": (0.87, True, ""),
        "siblings kept ≥ 0.97": (0.98, True, ""),
        "siblings kept, worst ≥ 0.92": (0.9, False, ""),
        "unrelated kept ≥ 0.99": (1.0, True, ""),
        "attacks above retrained ≤ 0.05": (0.04, True, "cross-modal: jpeg"),
        "relearning above retrained ≤ 0.10": (0.2, False, ""),
        "membership within 0.1": (-0.15, False, ""),
        "ahead of the best other training-free by |target − retrained| and losses": (0.35, True, "nullu"),
        "ahead of the best trained by |target − retrained| and losses": (0.05, True, "npo"),
        "in at most 1/3 of its time": (0.25, True, "npo"),
    }
    (alone,) = tables(made(OUR, 0.97, 3.0)).values()
    assert {check.what: check.met for check in checks(PLACE, alone)}["membership within 0.1"] is None
    assert not list(checks(PLACE, {"npo": table["npo"]}))


def test_a_bound_stands_beside_what_two_retrainings_are_apart() -> None:
    rows = [*page(), *made(RetrainedAgain.name, 0.93, NAN, attacked=True)]
    (table,) = tables(rows).values()
    again = {check.what: check.again for check in checks(PLACE, table) if not np.isnan(check.again)}
    assert again == pytest.approx(
        {
            "recovered gap ≥ 0.95": 0.93,
            "recovered gap, worst ≥ 0.85": 0.83,
            "attacks above retrained ≤ 0.05": 0.04,
            "relearning above retrained ≤ 0.10": 0.2,
            "membership within 0.1": -0.15,
        }
    )
    text = markdown(rows, {PLACE: 2}, [OUR], [])
    assert "| ward, llava, patient | recovered gap ≥ 0.95 | 0.970 | yes | 0.930 |\n" in text


def test_the_page_shows_figures_and_what_is_missing() -> None:
    names = [OUR, "npo", "nullu", "chip", "idk"]
    text = markdown(
        page(), {PLACE: 4, ("ward", "llava", "study"): 4}, names, ["ward, llava, seed 1, patient: not trained"]
    )
    assert "- ward, llava, seed 1, patient: not trained\n" in text
    assert "- ward, llava, patient: 0 of 4 results of idk\n" in text
    assert "- ward, llava, patient: 2 of 4 results of shielded, npo, nullu, chip\n" in text
    assert "- ward, llava, study: 0 of 4 results of every method\n" in text
    assert (
        "| ward, llava, patient | 2 × 1 | 0.97 / 0.87 | 0.05 | 0.25 (0.20) | 0.98 | 1.00 | "
        "0.40 (nullu: 0.98 / 1.00) | 0.10 below (npo: 0.98 / 1.00) |\n" in text
    )
    (line,) = (line for line in text.splitlines() if line.startswith("| shielded |"))
    shown = [cell.strip() for cell in line.split("|")[1:-1]]
    assert shown[:8] == ["shielded", "0.97", "0.87", "0.05", "0.25", "0.98", "0.90", "1.00"]
    assert shown[8:10] == ["–", "+0.04 (cross-modal: jpeg)"]
    assert shown[10:] == ["+0.20", "-0.15", "3.0", "–", "–", "2 × 1"]
    assert "Nothing." in markdown(page(), {PLACE: 2}, names[:-1], [])
    assert not list(lacking(tables(page()), {PLACE: 2}, names[:-1]))


def test_pictures_are_small(tmp_path: Path) -> None:
    attacks = ("reconstruction: none", "quantization: 4 bits")
    under = [row(name, "target", f"exact_match | {attack}", 0.3) for name in (OUR, "npo") for attack in attacks]
    draw([*page(), *under], tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"plane.png", "ladder.png"}
    assert all(1000 < file.stat().st_size < 200_000 for file in tmp_path.iterdir())
    draw([], tmp_path)


def number(cell: str) -> Any:
    """What a cell shows; a dash where there is no figure."""
    return pytest.approx(NAN, nan_ok=True) if cell == NONE else pytest.approx(float(cell), abs=0.0051)


def committed() -> list[ResultRow]:
    return [row for name in command.FULL_WORLDS for row in read_results(command.RESULTS / f"{name}.json")]


def test_every_committed_row_is_found_again() -> None:
    """A method of today has its settings, of the same names, in the same order, and its version or a later one.

    Rows of an earlier version stay in the tables, which say so, until they are measured again.
    """
    found = {
        (name, json.dumps(method.settings)): method.version
        for name, kind in METHODS.items()
        for method in (kind.grid() if kind.tuned else [kind()])
    }
    found |= {(kind.name, "{}"): kind.version for kind in (Untouched, Retrained, RetrainedAgain)}
    rows = committed()
    assert {(row.method, json.dumps(row.settings)) for row in rows} <= found.keys()
    assert all(row.version <= found[row.method, json.dumps(row.settings)] for row in rows)


def test_keys_are_what_they_were() -> None:
    ours = {"method": "shielded", "version": 4, "settings": [None, "auto", 0.1, 0.3]}
    assert method_key(ShieldedEdit()) == ours
    assert method_key(ShieldedEdit(max_retain_drop=0.01)) != ours
    control = {"method": "random change", "version": 1, "settings": [ours]}
    assert method_key(METHODS["random change"]()) == control
    assert method_key(METHODS["chip"]()) == {"method": "chip", "version": 1, "settings": [None, 0.1, 0.95, 0.3]}
    retrained = {"method": "retrained", "version": 1, "settings": ["model"]}
    assert method_key(Retrained(Path("cache/model"))) == retrained


def test_names_of_earlier_results_are_those_of_today() -> None:
    earlier = result(0.5, attacked=True).to_json()
    text = json.dumps(earlier).replace("paraphrased", "rephrased").replace("quantization", "quantisation")
    assert json.dumps(Result.from_json(json.loads(text)).to_json()) == json.dumps(earlier)
    splits = {row.split for row in committed()}
    assert splits == {"trained", "paraphrased", "worst", "model"}


def test_committed_rows_make_the_committed_tables() -> None:
    rows = committed()
    assert len({row.version for row in rows}) == 1
    text = (command.RESULTS / "tables.md").read_text()
    for place, table in tables(rows).items():
        assert f"\n## {', '.join(place)}\n" in text
        section = text.split(f"\n## {', '.join(place)}\n")[1].split("\n## ")[0]
        shown = {
            line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in section.splitlines()[3:] if line
        }
        assert list(shown) == list(table)
        for name, line in table.items():  # committed rows have four digits, which the page was not made from
            assert line.worst(GAP, "recovered_gap") == number(shown[name][2])
            assert line.value("target", "exact_match") == number(shown[name][4])
            if name != Retrained.name:
                assert line.distance == number(shown[name][3].removesuffix(" below"))


# --- the gate, and the command ---


def test_a_model_that_does_not_know_its_world_is_refused(
    context: Callable[[], WorkerContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = Scope(("ward",), ("llava",), ("stub",), seeds=1, targets=1)
    run = command.Run(scope, context(), train=False, measure=True)  # learned nothing: the true gate
    assert [jobs for _, jobs in run.work() if jobs] == []
    assert command.write(tmp_path / "out", run) == []
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "- ward, llava, seed 0, privacy: train questions: 0.000 are answered, 0.95 must be; " in text
    assert "department_1/case_2/private: answered by 0.000 more than without it" in text
    monkeypatch.setattr(gates, "gate", None)  # gated once
    assert [jobs for _, jobs in command.Run(scope, context(), False, True).work() if jobs] == []


@pytest.mark.slow
def test_a_run_from_jobs_to_pages(
    context: Callable[[], WorkerContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "gate_of", lambda *_: Gate({"train": 1.0, "rephrased": 1.0}, {}))
    scope = Scope(("ward",), ("llava",), ("stub",), seeds=1, targets=2, attacks=False)
    done: list[Job] = []
    do = Job.do

    def spy(self: Job, context: WorkerContext) -> None:
        done.append(self)
        do(self, context)

    @contextmanager
    def here(*_: object) -> Iterator[running.Do]:
        """Not in other processes, which would not know of the stub."""

        def do(work: Sequence[running.Work], on_done: running.OnDone) -> None:
            for piece in work:
                piece.do(opened)
                on_done(str(piece))

        opened = context()
        yield do

    monkeypatch.setattr(Job, "do", spy)
    monkeypatch.setattr(command, "workers", here)
    command.do_all(command.Run(scope, context(), False, True), 1, tmp_path, "cpu")
    target = [job.request.target.split("/")[1] for job in done]
    assert list(zip(target, [job.method for job in done], strict=True)) == [
        (request, name) for request in ("case_2", "case_3") for name in ("retrained", "untouched", "stub")
    ]
    done.clear()
    run = command.Run(scope, context(), False, True)
    command.do_all(run, 1, tmp_path, "cpu")
    assert done == []
    rows = command.write(tmp_path / "out", run)
    assert {row.method for row in rows} == {"retrained", "untouched", "stub"}
    read = read_results(tmp_path / "out" / "ward.json")
    assert sorted(map(repr, read)) == sorted(repr(rounded(row)) for row in rows)
    assert "## ward, llava, privacy" in (tmp_path / "out" / "tables.md").read_text()
    report = command.Run(replace(scope, methods=("stub", "failing")), context(), False, measure=False)
    assert command.write(tmp_path / "out", report)
