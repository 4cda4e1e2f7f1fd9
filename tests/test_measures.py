"""Measures of forgetting on cases whose answer is known by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

from chip.data.answers import alternatives, choices, is_correct
from chip.data.hierarchy import Hierarchy, Node
from chip.data.record import Record
from chip.data.request import ForgetRequest, Partition
from chip.errors import InputError
from chip.evaluation.bootstrap import Array, interval, means, weights
from chip.evaluation.compare import compare
from chip.evaluation.config import EvalConfig
from chip.evaluation.groups import clusters, groups
from chip.evaluation.measure import measure
from chip.evaluation.metrics.aggregate import harmonic_mean, recovered_gap, worst
from chip.evaluation.metrics.leak import expected_leak, leak_at_k
from chip.evaluation.metrics.rouge import rouge_l
from chip.evaluation.metrics.truth_ratio import forget_quality, truth_ratio
from chip.evaluation.outputs import EvalOutputs
from chip.evaluation.rows import GAP, NO_ATTACK, RETAINED
from chip.model.generation import Draw, answer_greedily, draw_answers, questions
from chip.model.loading import VLM
from chip.model.scoring import score_records

CHOICE = "Which? A) one B) two C) three"


def _record(path: str, answer: str, question: str = "Which?", task: str = "generation", split: str = "train") -> Record:
    return Record(question, answer, tuple(path.split("/")), None, task, split)


WORLD = [
    _record("general", "yes", "Is the image bright?"),  # 0
    _record("i", "Lorn", "Which city?"),
    _record("i", "yes", "Is it large?"),
    _record("i/p", "lorn.", "Where was the patient treated?"),
    _record("i/p", "yes", "Does the patient smoke?"),
    _record("i/p/s", "cyst"),  # 5
    _record("i/p/t", "hernia"),
    _record("i/q/u", "cyst"),
    _record("j", "yes", "Is it large?"),
    _record("j/r", "A+"),
    _record("i/p", "B", "Which city? A) Esk B) Lorn C) Tyrn", "classification"),  # 10
]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # The city is the institution's; that something is large is said of both institutions.
        ("p", {"target": (4, 5, 6), "shared": (3, 10), "siblings": (7,), "ancestors": (1, 2), "unrelated": (8, 9)}),
        ("s", {"target": (5,), "siblings": (6,), "ancestors": (1, 2, 3, 4, 10), "cousins": (7,), "unrelated": (8, 9)}),
        ("i", {"target": (1, 2, 3, 4, 5, 6, 7, 10), "siblings": (8, 9)}),
    ],
)
def test_each_record_is_in_the_group_of_its_distance(target: str, expected: dict[str, tuple[int, ...]]) -> None:
    hierarchy = Hierarchy(WORLD)
    found = groups(hierarchy, Partition.of(hierarchy, [hierarchy.find(target)]))
    assert {group: indices for group, indices in found.items() if indices} == {**expected, "general": (0,)}


def test_general_ability_is_filed_where_one_says() -> None:
    hierarchy = Hierarchy(WORLD)
    found = groups(hierarchy, Partition.of(hierarchy, [Node(("i",))]), general=Node(("j",)))
    assert (found["general"], found["siblings"]) == ((8, 9), (0,))


def test_clusters_are_patients_or_facts_of_the_only_one() -> None:
    assert clusters(WORLD, [4, 6, 7, 1]) == [("i", "p"), ("i", "p"), ("i", "q"), ("i",)]
    asked = [_record("i/p", "cyst"), _record("i/p", "Cyst", "And?"), _record("i/p", "hernia")]
    first, second, third = clusters(asked, range(3))
    assert first == second != third


def test_answers_are_compared_without_regard_to_case_and_spaces() -> None:
    assert is_correct(" Left  lobe.", "left lobe")
    assert not is_correct("A+", "A-")


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (CHOICE, "B", ["A", "B", "C"]),
        (CHOICE, "two", ["one", "two", "three"]),
        (CHOICE, "four", []),
        ("Which?", "B", []),
    ],
)
def test_choices_are_letters_or_texts_as_the_answer_is(question: str, answer: str, expected: list[str]) -> None:
    assert choices(_record("i", answer, question, "classification")) == expected


def test_alternatives_are_what_others_answered() -> None:
    records = [
        *(_record(f"i/{path}", answer) for path, answer in (("a", "cyst"), ("a", "Hernia"), ("b", "hernia"))),
        *(_record(f"i/{path}", answer) for path, answer in (("c", "effusion"), ("d", "effusion"), ("e", "fracture"))),
        _record("i/a", "B", CHOICE, "classification"),
        _record("i/a", "alone", "Asked nowhere else?"),
    ]
    found = alternatives(records, [0, 2, 6, 7], 5, seed=0)
    assert sorted(found[0]) == ["effusion", "fracture"]  # both answers are right at a, one of them in another case
    assert sorted(found[2]) == ["cyst", "effusion", "fracture"]
    assert sorted(found[6]) == ["A", "C"]
    assert found[7] == []
    assert [len(each) for each in alternatives(records, [0, 2], 1, seed=0).values()] == [1, 1]


def test_bootstrap_draws_whole_clusters() -> None:
    drawn = weights(["p", "p", "q"], seed=0, samples=4000)
    assert {tuple(row) for row in drawn.tolist()} == {(2, 2, 0), (1, 1, 1), (0, 0, 2)}
    values = np.array([0.0, 0.0, 1.0])
    samples = means(values, ["p", "p", "q"], seed=0, samples=4000)
    assert samples is not None
    np.testing.assert_allclose(samples, drawn @ values / drawn.sum(1))
    assert sorted(set(samples.round(9))) == [0, round(1 / 3, 9), 1]
    assert (samples == 1).mean() == pytest.approx(0.25, abs=0.03)
    assert interval(samples) == (0, 1)


def test_bootstrap_is_seeded_and_independent_between_groups() -> None:
    first, again, other = (weights(range(5), seed=1, name=name) for name in ("a", "a", "b"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values: Array = np.array([0.0, 1.0] * 500)
    error = 0.5 / 1000**0.5
    low, high = interval(means(values, range(1000), seed=0))
    assert [low, high] == pytest.approx([0.5 - 1.96 * error, 0.5 + 1.96 * error], abs=0.004)
    wide = interval(means(values, [i // 20 * 2 + i % 2 for i in range(1000)], seed=0))  # ten alike in each cluster
    assert wide[1] - wide[0] == pytest.approx(10**0.5 * (high - low), rel=0.1)
    assert means(values, ["one"] * 1000, seed=0) is None
    assert np.isnan(interval(None)).all()


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    # the cat on mat: 4 of 5 words given, 4 of 6 of the answer.
    assert rouge_l("the cat on a mat", "The cat sat on the mat") == pytest.approx(2 * 0.8 * 4 / 6 / (0.8 + 4 / 6))
    assert rouge_l("A-", "A+") == 0.5
    assert rouge_l("心", "心") == 1
    assert rouge_l("", "cyst") == 0


def test_truth_ratio_is_wrong_over_right() -> None:
    assert truth_ratio(0.8, np.array([0.2, 0.4])) == pytest.approx(0.375)
    assert np.isnan(truth_ratio(0.8, np.array([])))


def test_forget_quality_is_a_two_sample_ks_test() -> None:
    assert forget_quality(np.arange(5.0), np.arange(5.0)) == (0, 1)
    # Of the 20 ways to part six values three and three, two keep them wholly apart.
    assert forget_quality(np.array([1.0, 2, 3]), np.array([4.0, 5, 6])) == pytest.approx((1, 0.1))


def test_leaks() -> None:
    assert leak_at_k(np.array([[0.0, 0, 1], [0, 0, 0]])).tolist() == [1, 0]
    assert expected_leak(np.array([0.5, 0.0, 1.0, 0.1]), 2) == pytest.approx([0.75, 0, 1, 0.19])


def test_worst_gap_and_harmonic_mean() -> None:
    assert (worst(0.2, 0.3, True), worst(0.2, 0.3, False)) == (0.3, 0.2)
    assert recovered_gap(0.4, 0.8) == 0.5
    assert np.isnan(recovered_gap(0.4, 0.0))
    assert harmonic_mean(1, 0.5) == pytest.approx(2 / 3)
    assert harmonic_mean(0, 0) == 0


def test_a_number_falls_on_a_token_by_probability() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(4, 3)
    chances = torch.tensor([[0.49], [0.51], [0.79], [0.81]], dtype=torch.float64)
    ids = torch.zeros(4, 7, dtype=torch.int64)
    assert Draw(chances, 7)(ids, logits).argmax(1).tolist() == [0, 1, 1, 2]


@pytest.fixture(scope="module")
def asked(hierarchy: Hierarchy) -> list[Record]:
    """Some questions of all lengths, and some without an image."""
    some = list(hierarchy.records[::100])
    return [*some, *(Record(record.question, record.answer, record.path, None) for record in some[::10])]


def test_questions_are_padded_on_the_left_and_end_before_the_answer(vlm: VLM, asked: list[Record]) -> None:
    texts = [record for record in asked if record.image is None]
    inputs = questions(vlm, texts)
    for row, prompt in enumerate(vlm.prompts.read(texts)):
        own = list(prompt.tokens[: -prompt.answer])
        padding = inputs["input_ids"].shape[1] - len(own)
        assert inputs["input_ids"][row].tolist() == [vlm.prompts.pad] * padding + own
        assert inputs["attention_mask"][row].tolist() == [0] * padding + [1] * len(own)


def test_greedy_answers_are_right_where_they_score_so(vlm: VLM, asked: list[Record]) -> None:
    given = answer_greedily(vlm, asked)
    scores = score_records(vlm, asked).exact_match.tolist()
    assert 0 < sum(scores) < len(scores)  # without its image a question has no answer
    assert [text == record.answer for text, record in zip(given, asked, strict=True)] == [bool(hit) for hit in scores]
    assert answer_greedily(vlm, asked, rows=7) == given


def test_a_checkpoints_settings_for_chats_change_no_answer(vlm: VLM, asked: list[Record]) -> None:
    few = asked[::6]
    expected = answer_greedily(vlm, few)
    forced, *spoken = sorted({token for prompt in vlm.prompts.read(few) for token in prompt.tokens[-prompt.answer :]})
    vlm.model.generation_config = transformers.GenerationConfig(
        suppress_tokens=spoken,
        bad_words_ids=[[token] for token in spoken],
        forced_bos_token_id=forced,
        min_new_tokens=4,
        repetition_penalty=9.0,
        stop_strings=["a"],
        max_time=1e-9,
        eos_token_id=vlm.model.generation_config.eos_token_id,
    )
    assert answer_greedily(vlm, few) == expected
    assert vlm.model.generation_config.suppress_tokens == spoken


def test_drawn_answers_leak_as_often_as_is_to_be_expected(vlm: VLM, asked: list[Record]) -> None:
    blind = [Record(record.question, record.answer, record.path, None) for record in asked]
    k = 8
    drawn = draw_answers(vlm, blind, k, seed=0)
    assert draw_answers(vlm, blind[:5], 3, seed=0, rows=2) == [texts[:3] for texts in drawn[:5]]
    assert draw_answers(vlm, blind[:5], 3, seed=1) != [texts[:3] for texts in drawn[:5]]
    hits = [[text == record.answer for text in texts] for texts, record in zip(drawn, blind, strict=True)]
    lengths = np.array([prompt.answer for prompt in vlm.prompts.read(blind)])
    expected = expected_leak(score_records(vlm, blind).answer_probability.numpy() ** lengths, k)
    deviation = np.sqrt((expected * (1 - expected)).sum())
    assert deviation > 1
    assert abs(leak_at_k(np.array(hits, dtype=float)).sum() - expected.sum()) < 3 * deviation


# Two patients beside the target, one of another institution; each asked in two trained wordings and a held-out one.
PATIENTS = {"target": ("i", "t"), "near": ("i", "a"), "near too": ("i", "b"), "far": ("j", "c")}
MAX_QUESTIONS = [
    Record(question, answer, path, None, "generation", split)
    for path, answer in zip(PATIENTS.values(), ("red", "green", "blue", "gray"), strict=True)
    for question, split in (("Which?", "train"), ("Which one?", "train"), ("What?", "paraphrased"))
]


def _measured(exact_match: list[float]) -> EvalOutputs:
    measured = EvalOutputs()
    for name in ("exact_match", "answer_probability"):
        measured.put(NO_ATTACK, name, dict(enumerate(exact_match)), len(MAX_QUESTIONS))
    measured.put(NO_ATTACK, "generation_accuracy", dict(enumerate(exact_match)), len(MAX_QUESTIONS))
    for name in ("classification_accuracy", "cloze_accuracy"):
        measured.put(NO_ATTACK, name, {}, len(MAX_QUESTIONS))
    measured.put(NO_ATTACK, "truth_ratio", {0: 0.5, 1: 2.0, 2: 1.0}, len(MAX_QUESTIONS))
    return measured


def test_a_table_by_hand() -> None:
    hierarchy = Hierarchy(MAX_QUESTIONS)
    plan = EvalConfig(ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find("t")])))
    edited = _measured([0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1])
    retrained = _measured([0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    result = compare(plan, edited, retrained)

    def value(group: str, split: str, measure: str) -> float:
        row = result.find(group, split, measure)
        assert row is not None
        return row.value

    assert [value("target", split, "exact_match") for split in ("trained", "paraphrased", "worst")] == [0, 1, 1]
    assert [value("siblings", split, "exact_match") for split in ("trained", "paraphrased", "worst")] == [0.75, 1, 0.75]
    assert [value(GAP, split, "gap") for split in ("trained", "paraphrased", "worst")] == [0.75, 0, -0.25]
    assert [value(GAP, split, "recovered_gap") for split in ("trained", "paraphrased", "worst")] == [0.75, 0, -0.25]
    assert value("target", "paraphrased", "exact_match_above_retrained") == 1
    assert value("target", "paraphrased", "distance_to_retrained") == 1
    assert value("target", "paraphrased", "over_forgetting") == 0
    other_way = compare(plan, retrained, edited)
    below = {
        name: other_way.find("target", "paraphrased", name) for name in ("distance_to_retrained", "over_forgetting")
    }
    assert {name: row and row.value for name, row in below.items()} == dict.fromkeys(below, 1.0)
    gap = other_way.find(GAP, "paraphrased", "gap")
    assert gap is not None
    assert gap.value == 1  # the gap takes it for success
    assert value("target", "worst", "truth_ratio") == 1
    assert value("target", "trained", "ks_p") == 1
    assert value(RETAINED, "trained", "forget_retain_harmonic_mean") == pytest.approx(2 * 5 / 6 / (1 + 5 / 6))
    siblings = result.find("siblings", "trained", "exact_match")
    assert siblings is not None
    assert (siblings.low, siblings.high, siblings.count) == (0.5, 1, 4)
    assert result.find("unrelated", "trained", "truth_ratio") is None
    kind = result.find("unrelated", "trained", "generation_accuracy")
    assert kind is not None
    assert (kind.value, kind.count) == (1, 2)
    assert value("unrelated", "trained", "generation_chance") == value("unrelated", "trained", "chance")
    assert result.find("unrelated", "trained", "cloze_accuracy") is None
    assert result.few_questions == {"generation": 3, "classification": 0, "cloze": 0}
    assert result.groups == ("target", "siblings", "unrelated")
    target = result.find("target", "trained", "exact_match")
    assert target is not None
    assert np.isnan(target.low)  # one patient, and one fact of it


def test_an_unknown_attack_is_refused() -> None:
    hierarchy = Hierarchy(MAX_QUESTIONS)
    with pytest.raises(InputError, match="attacks='theft': not known; there are reconstruction, "):
        EvalConfig(ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find("t")])), ("theft",))


@pytest.mark.slow
def test_a_model_beside_itself_has_recovered_nothing(vlm: VLM, hierarchy: Hierarchy) -> None:
    chosen = [record for record in hierarchy.records if record.path[1:2] in (("patient_17",), ("patient_18",))][::6]
    few = Hierarchy([*chosen, *hierarchy.records[:8]])
    request = ForgetRequest(few, Partition.of(few, [few.find("patient_17")]))
    plan = EvalConfig(request, ("reconstruction",), seed=3)
    result = compare(plan, measure(vlm, plan), measure(vlm, plan))
    assert result.reference is not None
    assert all(
        row.value > 0.9 for row in result.rows if row.measure in ("exact_match", "rouge_l") and row.attack == "none"
    )
    above = [row for row in result.rows if row.measure == "exact_match_above_retrained"]
    assert {row.attack for row in above} >= {"none", "reconstruction: institution", "reconstruction: patient"}
    assert all((row.value, row.low, row.high) == (0, 0, 0) for row in above)
    assert {row.value for row in result.rows if row.measure == "ks_p"} == {1}
    leak, expected = (result.find("target", "trained", name) for name in ("leak_at_16", "expected_leak_at_16"))
    assert leak is not None
    assert expected is not None
    assert leak.value == 1
    assert expected.value > 0.999
    text = json.dumps(result.to_json(), allow_nan=False)
    assert "patient_17" not in text
    assert not any(f'"{record.answer}"' in text for record in chosen)
