"""The attacks that reviewers of late 2026 ask for, on cases whose outcome is known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from chip.data.hierarchy import Hierarchy
from chip.data.record import Record
from chip.data.request import ForgetRequest, Partition
from chip.errors import InputError
from chip.evaluation.attacks import ATTACKS, find_attacks
from chip.evaluation.attacks.depth import LOST, Depth, spread, unlearning_depth_score
from chip.evaluation.attacks.in_context import InContext, Shown
from chip.evaluation.attacks.leak import Leak
from chip.evaluation.attacks.relearning_target import RelearningTarget, shown_facts
from chip.evaluation.attacks.steering import Steering, mean_states
from chip.evaluation.attacks.trace import HASHES, Trace, hashed_words, told_apart
from chip.evaluation.attacks.wording import TwoHops, Wording, as_question, with_options_reordered
from chip.evaluation.compare import compare
from chip.evaluation.config import EvalConfig
from chip.evaluation.context import EvalContext
from chip.evaluation.facts import fact
from chip.evaluation.measure import context_of, measure
from chip.evaluation.metrics.leak_estimator import leak_of
from chip.model.batching.batch_size import BatchSize
from chip.model.forward.trace import change_output
from chip.model.loading import VLM, load_vlm
from chip.progress import silent

CHOICE = "Which? A) one B) two C) three"


def _record(patient: str, answer: str, question: str, task: str = "generation", split: str = "train") -> Record:
    return Record(question, answer, ("i", patient), None, task, split)


def _of_patient(patient: str, answers: Sequence[str]) -> list[Record]:
    """A question for each answer, in a trained and in another wording."""
    return [
        _record(patient, answer, f"{words} {number}?", split=split)
        for number, answer in enumerate(answers)
        for words, split in (("What is", "train"), ("Name", "paraphrased"))
    ]


def _config(records: Sequence[Record], *targets: str, attacks: Sequence[object] = ()) -> EvalConfig:
    hierarchy = Hierarchy(records)
    partition = Partition.of(hierarchy, [hierarchy.find(target) for target in targets])
    return EvalConfig(ForgetRequest(hierarchy, partition), attacks, draws=0, sampled=12)  # type: ignore[arg-type]


def _context(vlm: VLM, config: EvalConfig, original: VLM | None = None) -> EvalContext:
    return context_of(vlm, config, BatchSize(), silent, original)


@pytest.fixture
def config(hierarchy: Hierarchy) -> EvalConfig:
    """Some questions about two patients of the demo, one of them the target, and about strangers."""
    some = [record for record in hierarchy.records if record.path[1:2] in (("patient_17",), ("patient_18",))][::8]
    return _config([*some, *hierarchy.records[:24:2]], "patient_17")


def test_the_standard_set_asks_for_nothing_more_than_the_model() -> None:
    names = [attack.name for attack in find_attacks("standard")]
    assert names == [
        *("reconstruction", "cross-modal", "in-context", "wording", "quantization", "relearning", "membership")
    ]
    assert not any(attack.needs for attack in find_attacks("standard"))
    assert [attack.name for attack in find_attacks("standard,leak,leak")] == [*names, "leak"]
    with pytest.raises(InputError, match="there are reconstruction, "):
        find_attacks("standards")


# --- a third of the target's own facts ---


def test_a_third_of_the_facts_is_shown_with_all_of_their_wordings(vlm: VLM) -> None:
    config = _config([*_of_patient("t", "abcdef"), *_of_patient("u", "xyz"), *_of_patient("v", "g")], "t", "u")
    context = _context(vlm, config)
    shown = shown_facts(context)
    counts = [
        sum(fact(config.records[index]) in shown for index in indices)
        for indices in config.request.partition.forget_of.values()
    ]
    assert counts == [4, 2]  # two of six, one of three, in two wordings each
    assert not any(fact(record) in shown for record in config.records if record.path[1] == "v")


def test_a_single_fact_has_no_rest(vlm: VLM) -> None:
    context = _context(vlm, _config([*_of_patient("t", "a"), *_of_patient("v", "g")], "t"))
    RelearningTarget().run(context)
    assert context.outputs.skipped == {"relearning-target": "the target has fewer than two facts"}
    assert not context.outputs.values


# --- in context ---


def test_facts_of_the_same_node_are_shown_but_not_the_answer(vlm: VLM) -> None:
    records = [*_of_patient("t", ["red", "blue", "green", "red"]), *_of_patient("v", ["red", "gray"])]
    context = _context(vlm, _config(records, "t"))
    own = Shown(context, lambda _: context.members, 8)
    asked = own(records[0])
    assert asked is not None
    assert asked.question.endswith(" What is 0?")
    assert "blue." in asked.question
    assert "green." in asked.question
    assert "red" not in asked.question
    assert asked.answer == "red"
    one = Shown(context, lambda _: context.members, 1)(records[0])
    assert one is not None
    assert sum(word in one.question for word in ("blue", "green")) == 1
    assert Shown(context, lambda _: (), 1)(records[0]) is None
    long = _record("t", "red", " ".join(["word"] * 2000))
    assert Shown(context, lambda _: context.members, 8)(long) is None  # there is no room


def test_without_siblings_that_step_is_skipped(vlm: VLM) -> None:
    records = [*_of_patient("t", ["red", "blue"]), Record("Elsewhere?", "yes", ("j", "w"), None)]
    context = _context(vlm, _config(records, "t"))
    InContext().run(context)
    assert {attack for attack, _ in context.outputs.values} == {"in-context: 4 of own facts"}
    assert context.outputs.skipped == {"in-context: 4 of siblings": "there are none"}


# --- wording ---


def test_options_move_on_by_one_and_the_letter_with_them() -> None:
    moved = with_options_reordered(_record("t", "B", CHOICE, "classification"))
    assert moved is not None
    assert (moved.question, moved.answer) == ("Which? A) three B) one C) two", "C")
    last = with_options_reordered(_record("t", "C", CHOICE, "classification"))
    assert last is not None
    assert last.answer == "A"
    text = with_options_reordered(_record("t", "two", CHOICE, "classification"))
    assert text is not None
    assert text.answer == "two"
    assert with_options_reordered(_record("t", "B", CHOICE)) is None
    assert with_options_reordered(_record("t", "B", "Which one?", "classification")) is None


def test_a_gap_becomes_a_question() -> None:
    asked = as_question(_record("t", "5 mm", "Fill in the blank: the size is [blank].", "cloze"))
    assert asked is not None
    assert (asked.question, asked.answer, asked.task) == ("the size is what?", "5 mm", "generation")
    plain = as_question(_record("t", "5 mm", "At [blank] the scanner: it broke", "cloze"))
    assert plain is not None
    assert plain.question == "At what the scanner: it broke?"
    assert as_question(_record("t", "5 mm", "What size?")) is None


def test_two_hops_name_a_node_by_what_is_its_alone() -> None:
    records = [
        _record("t", "red", "Which color?"),
        _record("t", "Ann", "Who?"),
        _record("v", "red", "Which color?"),
        _record("v", "Bea", "Who?"),
    ]
    hops = TwoHops(records, [0, 1], [2, 3])
    asked = hops(records[0])
    assert asked is not None
    assert asked.question == "Think of the one of which “Who?” is answered “Ann”. Which color?"
    assert asked.image is None
    assert hops(records[1]) is None  # red are two


def test_a_beginning_is_given_and_the_rest_counts(vlm: VLM, config: EvalConfig) -> None:
    context = _context(vlm, config)
    context.score("none", {i: config.records[i] for i in context.attacked})
    Wording().run(context)
    plain, half = (
        context.outputs.values[attack, "exact_match"] for attack in ("none", "wording: half of the answer given")
    )
    known = ~np.isnan(half)
    assert known.any()
    assert (half[known] >= plain[known]).all()  # who gives all of an answer gives its end
    assert np.isnan(context.outputs.values["wording: two hops", "exact_match"]).any()
    assert "wording: begun with “The answer is”" in {attack for attack, _ in context.outputs.values}


# --- leaks ---


def test_the_estimate_is_the_mean_over_all_draws_of_k() -> None:
    right = [1, 1, 0, 0, 0]
    pairs = [any(pair) for pair in combinations(right, 2)]
    assert leak_of(np.array([2.0, 0.0, 5.0]), 5, 2) == pytest.approx([sum(pairs) / len(pairs), 0, 1])
    assert leak_of(np.array([0, 1, 3]), 128, 128).tolist() == [0, 1, 1]
    drawn = np.random.default_rng(0).binomial(16, 0.1, 20000)
    assert leak_of(drawn, 16, 4).mean() == pytest.approx(1 - 0.9**4, abs=0.005)


def test_leaks_grow_with_k_and_are_asked_at_each_temperature(vlm: VLM, config: EvalConfig) -> None:
    context = _context(vlm, config)
    Leak(draws=4, temperatures=(0.8, 1.2), ks=(1, 4, 8), most=4).run(context)
    assert {attack for attack, _ in context.outputs.values} == {"leak: temperature 0.8", "leak: temperature 1.2"}
    for attack in ("leak: temperature 0.8", "leak: temperature 1.2"):
        assert (attack, "leak_at_8") not in context.outputs.values  # more than were drawn
        first, all_four = (context.outputs.values[attack, f"leak_at_{k}"] for k in (1, 4))
        assert (~np.isnan(first)).sum() == 4
        assert np.nanmean(all_four) >= np.nanmean(first) > 0.9


# --- steering ---


def test_the_vector_is_what_was_taken(vlm: VLM, config: EvalConfig) -> None:
    context = _context(vlm, config)
    indices = context.members[:6]
    before = mean_states(vlm, context, indices, [1])
    taken = torch.linspace(-1, 1, len(before[1]))
    with change_output(vlm.layers[1], lambda states: states - taken.to(states)):
        after = mean_states(vlm, context, indices, [1])
    torch.testing.assert_close(before[1] - after[1], taken, atol=1e-4, rtol=0)


def test_targets_get_the_vector_of_the_others(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [*_of_patient("t", "ab"), *_of_patient("u", "cd"), *_of_patient("v", "ef")]
    sources: list[list[str]] = []

    def seen(vlm: VLM, context: EvalContext, indices: Sequence[int], layers: Sequence[int]) -> dict[int, Tensor]:
        sources.append(sorted({context.records[index].path[1] for index in indices}))
        return {layer: torch.zeros(128) for layer in layers}

    monkeypatch.setattr("chip.evaluation.attacks.steering.mean_states", seen)
    for targets, expected in ((("t", "u"), [["u"], ["u"], ["t"], ["t"]]), (("t",), [["u", "v"]] * 2)):
        sources.clear()
        context = _context(vlm, _config(records, *targets), vlm)
        context.score_attacked("none")
        Steering(depths=(0.5,), strengths=(1.0,)).run(context)
        assert sources == expected
        for name in ("exact_match", "answer_probability"):  # a vector of zeros changes nothing
            steered = context.outputs.values["steering: behind layer 2, × 1", name]
            np.testing.assert_allclose(steered, context.outputs.values["none", name], rtol=1e-5)


# --- depth ---


def test_the_depth_score_by_hand() -> None:
    retrained = np.array([[0.01, 0.0], [2.0, 0.0], [2.0, 0.04]])
    lost = np.array([[5.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    score = unlearning_depth_score(lost, retrained)
    assert score[0] == pytest.approx((1 + 2) / 4)  # the first layer does not count, more than all is all
    assert np.isnan(score[1])
    assert (spread(4, 12), spread(100, 3)) == ([0, 1, 2, 3], [0, 50, 99])


def test_hidden_states_of_the_same_model_lose_nothing_and_others_do(
    vlm: VLM, config: EvalConfig, hospital: Path
) -> None:
    context = _context(vlm, config, vlm)
    Depth(most=6).run(context)
    lost = np.array([context.outputs.values[f"depth: layer {layer}", LOST] for layer in range(4)])
    assert (~np.isnan(lost)).sum(1).tolist() == [6] * 4
    assert np.nanmax(np.abs(lost)) < 1e-4
    with change_output(vlm.layers[2], lambda states: torch.zeros_like(states)):
        broken = _context(vlm, config, load_vlm(hospital / "ckpt", "cpu"))
        Depth(most=6).run(broken)
    found = [np.nanmean(broken.outputs.values[f"depth: layer {layer}", LOST]) for layer in range(4)]
    assert max(map(abs, found[:2])) < 1e-4
    assert found[2] > 1


# --- trace ---


def test_a_classifier_tells_apart_what_differs_and_guesses_at_the_rest() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 200, 5))
    assert told_apart(one, other, seed=0)[0] == pytest.approx(0.5, abs=0.08)
    area, samples = told_apart(one + np.array([2, 0, 0, 0, 0]), other, seed=0)
    assert area > 0.85
    assert np.percentile(samples, 2.5) < area < np.percentile(samples, 97.5)
    assert told_apart(one, one, seed=0)[0] == pytest.approx(0.5)


def test_words_and_their_pairs_are_counted() -> None:
    features = hashed_words("A cyst, a cyst.")
    assert features[-1] == 6
    assert features.sum() == 6 + 6 + 5
    assert len(features) == HASHES + 1
    assert not np.array_equal(hashed_words("no cyst"), hashed_words("cyst no"))


# --- all of it ---


def test_what_an_attack_lacks_is_said(vlm: VLM, config: EvalConfig) -> None:
    wanted = EvalConfig(config.request, ("trace", "steering", "depth"), draws=0, sampled=4)
    outputs = measure(vlm, wanted, compared=False)
    result = compare(wanted, outputs)
    assert result.skipped == {
        "trace": "needs a model retrained without the target (--reference)",
        "steering": "needs the model before the edit (--original)",
        "depth": "needs the model before the edit (--original)",
    }
    assert {row.attack for row in result.rows} == {"none"}


def test_a_model_beside_another_under_late_attacks(vlm: VLM, config: EvalConfig) -> None:
    attacks = (Trace(prompts=12), Depth(most=4), Steering(depths=(0.5,), strengths=(1.0,)))
    wanted = EvalConfig(config.request, attacks, draws=0, sampled=4)
    own, reference = (measure(vlm, wanted, original=vlm) for _ in range(2))
    lost = {key: np.where(np.isnan(values), np.nan, 2.0) for key, values in reference.values.items() if key[1] == LOST}
    reference.values.update(lost)  # as if it lacked all of it
    result = compare(wanted, own, reference)
    assert result.skipped == {}
    score = result.find("target", "worst", "unlearning_depth_score", "depth")
    assert score is not None
    assert score.value == pytest.approx(0, abs=1e-4)
    areas = {row.measure: row.value for row in result.rows if row.measure.startswith("trace_auc_")}
    assert areas == pytest.approx({"trace_auc_answers": 0.5, "trace_auc_probabilities": 0.5})
    for name in ("distance_to_retrained", "over_forgetting"):
        row = result.find("target", "worst", name)
        assert row is not None
        assert row.value == 0
    assert set(ATTACKS) >= {attack.name for attack in attacks}
