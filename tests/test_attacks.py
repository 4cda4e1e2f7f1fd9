"""Attacks do what they say, on cases whose outcome is known, and leave the model as it was."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.main import get_command

from chip.cli.main import app
from chip.data.hierarchy import Hierarchy
from chip.data.record import Record, open_image
from chip.data.request import ForgetRequest, Partition
from chip.errors import InputError, RunError
from chip.evaluation.answer_tokens import AnswerTokens, answer_tokens, standardize
from chip.evaluation.attacks import ATTACKS, find_attacks, register_attack
from chip.evaluation.attacks import relearning as module
from chip.evaluation.attacks.cross_modal import CHANGES, ImageChange, cropped, recompressed, rotated
from chip.evaluation.attacks.leak import Leak
from chip.evaluation.attacks.membership import (
    auc,
    auc_samples,
    loss,
    lowest,
    min_k,
    min_k_plus_plus,
    never_trained,
    true_positives,
)
from chip.evaluation.attacks.quantization import SCHEMES, quantized
from chip.evaluation.attacks.reconstruction import STEPS, with_context
from chip.evaluation.attacks.relearning import RATE, Relearning, relearning
from chip.evaluation.attacks.relearning_target import RelearningTarget
from chip.evaluation.compare import compare
from chip.evaluation.config import EvalConfig
from chip.evaluation.judge import Judge
from chip.evaluation.measure import measure
from chip.evaluation.quantizers import round_to_nearest
from chip.model.loading import VLM
from chip.model.scoring import score_records
from tests.judging import said

PATH = ("i", "p", "s", "findings")


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _weights(vlm: VLM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in vlm.model.state_dict().items()}


def _unchanged(vlm: VLM, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in vlm.model.state_dict().items())


@pytest.fixture
def few(hierarchy: Hierarchy) -> list[Record]:
    return list(hierarchy.records[:4000:500])


def test_reconstruction_names_one_level_after_the_other() -> None:
    record = Record("Who?", "x", PATH, None)
    asked = [with_context(record, step) for step in STEPS]
    assert [each.question for each in asked if each] == [
        "Who?",
        "Institution: i. Who?",
        "Institution: i. Patient: p. Who?",
        "Institution: i. Patient: p. Study: s. Who?",
    ]
    assert with_context(Record("Who?", "x", PATH[:2], None), "study") is None


def test_images_are_rotated_cropped_and_recompressed() -> None:
    white = Image.new("RGB", (100, 80), "white")
    turned = rotated(white)
    assert turned.size == (100, 80)
    assert (turned.getpixel((50, 40)), turned.getpixel((0, 0))) == ((255, 255, 255), (0, 0, 0))
    framed = white.copy()
    framed.paste((0, 0, 0), (10, 8, 90, 72))  # a tenth of each side is white
    assert cropped(framed).size == (100, 80)
    assert cropped(framed).getextrema() == ((0, 0),) * 3
    assert recompressed(white).getextrema() == ((255, 255),) * 3
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8))
    assert _png(recompressed(noise)) != _png(noise)


def test_records_get_the_changed_image_once() -> None:
    image = _png(Image.new("RGB", (8, 8), "white"))
    first, second = (Record(question, "x", PATH, image) for question in ("Who?", "What?"))
    for name in CHANGES:
        change = ImageChange(name)
        one, two = change(first), change(second)
        assert one is not None
        assert two is not None
        assert one.image is two.image
        assert one.question == "Who?"
        found = open_image(one)
        assert (found is None) == (name == "without image")
        assert found is None or found.size == (8, 8)
        assert change(Record("Who?", "x", PATH, None)) is None


def test_one_scale_a_row_rounds_as_by_hand() -> None:
    weight = torch.tensor([[127.0, 1.4, -0.6], [0.0, 12.7, 0.06]])
    expected = torch.tensor([[127.0, 1.0, -1.0], [0.0, 12.7, 0.1]])
    torch.testing.assert_close(round_to_nearest(weight, 8, None), expected)


def test_quantisation_is_undone(vlm: VLM) -> None:
    before = _weights(vlm)
    with quantized(vlm, SCHEMES["4 bits"]):
        weight = vlm.layers[0].mlp.down_proj.weight
        assert torch.equal(weight, round_to_nearest(weight))
        assert torch.equal(vlm.model.lm_head.weight, before["lm_head.weight"])
        assert not _unchanged(vlm, before)
    assert _unchanged(vlm, before)


def test_relearning_takes_the_steps_of_adamw_and_undoes_them(vlm: VLM, few: list[Record]) -> None:
    before = _weights(vlm)
    runs = relearning(vlm, few, seed=0, budgets=(1, 2))
    assert next(runs) == 1
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    old, new = before[name], vlm.model.state_dict()[name]
    # The first step of AdamW is the rate, against the gradient's sign, and a hundredth of it of the weight itself.
    step = (new - old * (1 - RATE * 0.01)).abs()
    assert step.max() <= 1.001 * RATE
    assert step.median() > 0.9 * RATE
    assert next(runs) == 2
    assert list(runs) == []
    assert _unchanged(vlm, before)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in vlm.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relearning_learns_and_is_seeded(vlm: VLM, few: list[Record], dtype: torch.dtype) -> None:
    texts = [Record(record.question, record.answer, record.path, None) for record in few]  # learned never so far
    vlm.model.to(dtype)
    before = score_records(vlm, texts).answer_probability.mean()
    after = []
    for seed in (0, 0):
        for _ in relearning(vlm, [*few, *texts], seed, budgets=(4,)):
            after.append(score_records(vlm, texts).answer_probability.mean())
    assert after[0] > before + 0.02
    assert after[0] == pytest.approx(after[1])


def test_each_record_comes_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    drawn = module._shuffled(10, seed=0)
    rounds = [index for _ in range(5) for index in next(drawn)]
    assert all(rounds.count(index) in (1, 2) for index in range(10))
    assert sorted(rounds[:8] + [i for i in range(10) if i not in rounds[:8]]) == list(range(10))
    assert sorted(next(module._shuffled(3, seed=0))) == [0, 1, 2]


def test_relearning_from_nothing_is_refused(vlm: VLM) -> None:
    with pytest.raises(InputError, match="nothing to relearn from"):
        next(relearning(vlm, [], seed=0))


def test_auc_counts_pairs_and_half_of_ties() -> None:
    members, others = np.array([3.0, 2.0]), np.array([1.0, 2.0])
    assert auc(members, others) == 0.875  # 3 > 1, 3 > 2, 2 > 1, 2 = 2
    assert auc(others, members) == 0.125
    assert auc(np.ones(3), np.ones(4)) == 0.5
    once, first_twice = np.ones((1, 2)), np.array([[2.0, 0.0]])
    assert auc_samples(members, others, once, once).tolist() == [0.875]
    assert auc_samples(members, others, first_twice, once).tolist() == [1]


def test_true_positives_stay_above_all_but_a_hundredth_of_the_others() -> None:
    others = np.arange(100.0)
    assert true_positives(np.array([99.5, 98.5, 98.0]), others) == pytest.approx(2 / 3)
    assert true_positives(np.array([9.5, 9.0, 0.0]), others[:10]) == pytest.approx(1 / 3)


def test_membership_scores_by_hand() -> None:
    logs = np.array([-5.0, -1, -3, -1, -1, -1, -1, -1, -1, -1])
    tokens = AnswerTokens(logs, np.arange(10.0), np.ones(10, dtype=bool))
    assert tokens.last(2).standardized.tolist() == [8, 9]
    assert (loss(tokens), min_k(tokens), min_k_plus_plus(tokens)) == (-1.6, -4, 0.5)
    assert lowest(np.array([-2.0, -1.0])) == -2  # of a short answer at least one


def test_tokens_in_standard_deviations() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1.0, 1.0, 1.0]], dtype=torch.float64).log()
    logs, standardized = standardize(logits, torch.tensor([0, 2, 1]))
    # Half of the mass is log 2 / 2 above the mean −1.5 log 2, half as much below it.
    torch.testing.assert_close(standardized, torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(logs.exp(), torch.tensor([0.5, 0.25, 1 / 3], dtype=torch.float64))


def test_token_probabilities_are_those_that_are_scored(vlm: VLM, few: list[Record]) -> None:
    tokens = answer_tokens(vlm, few)
    scored = score_records(vlm, few).answer_probability.tolist()
    assert [float(np.exp(each.log_probability.mean())) for each in tokens] == pytest.approx(scored, rel=1e-5, abs=0)
    assert [len(each.standardized) for each in tokens] == [prompt.answer for prompt in vlm.prompts.read(few)]


def test_never_trained_records_match_their_members() -> None:
    records = [Record(question, answer, ("i", answer), None) for question in ("Q?", "R?") for answer in ("x", "y")]
    unseen = [Record(q, "z", ("i", "new"), None, where=str(i)) for i, q in enumerate(("R?", "Q?", "Q?"))]
    matched = never_trained(records, [0, 1, 2], unseen, seed=0)
    assert sorted(record.where for record in matched) == ["0", "1", "2"]
    assert [record.question for record in matched] == ["Q?", "Q?", "R?"]
    other = never_trained([Record("S?", "x", ("i",), None)], [0], unseen, seed=0)
    assert [record.answer for record in other] == ["z"]
    wrong = never_trained(records, [0, 3], [], seed=0)
    assert [(record.question, record.answer, record.path) for record in wrong] == [
        ("Q?", "y", ("i", "x")),
        ("R?", "x", ("i", "y")),
    ]


def test_all_attacks_at_once(vlm: VLM, hierarchy: Hierarchy) -> None:
    chosen = [record for record in hierarchy.records if record.path[1:2] in (("patient_17",), ("patient_18",))][::4]
    few = Hierarchy(chosen)
    short = {"relearning": Relearning((1, 2)), "relearning-target": RelearningTarget((1,))}
    attacks = [short.get(name, name) for name in ATTACKS if name != "leak"]
    attacks.append(Leak(draws=2, temperatures=(1.0,), ks=(2,), most=8))
    plan = EvalConfig(ForgetRequest(few, Partition.of(few, [few.find("patient_17")])), attacks, draws=2, sampled=10)
    before = _weights(vlm)
    measured = measure(vlm, plan, original=vlm)
    assert _unchanged(vlm, before)
    result = compare(plan, measured)
    assert result.reference is None
    found = {row.attack for row in result.rows}
    assert found == {
        *("none", "membership: wrong answers"),
        *(f"reconstruction: {step}" for step in STEPS),
        *(f"cross-modal: {change}" for change in CHANGES),
        *(f"quantization: {scheme}" for scheme in ("8 bits", "8 bits per channel", "4 bits", "NF4", "Q4_K")),
        *(f"relearning: {steps} steps" for steps in (1, 2)),
        *("relearning-target: 1 steps", "leak: temperature 1"),
        *("in-context: 4 of own facts", "in-context: 4 of siblings"),
        *("wording: options reordered", "wording: cloze as a question", "wording: two hops"),
        *("wording: half of the answer given", "wording: begun with “The answer is”"),
        *(f"steering: behind layer {layer}, × {strength}" for layer in (1, 2, 3) for strength in (1, 2)),
        *(f"depth: layer {layer}" for layer in range(4)),
    } - {f"{attack}" for attack in result.skipped}
    assert set(result.skipped) <= {"trace", "wording: two hops", "wording: options reordered"}
    area = result.find("target", "trained", "auc_loss", "membership: wrong answers")
    assert area is not None
    assert area.value > 0.99  # it knows them
    blind = result.find("target", "worst", "exact_match", "cross-modal: without image")
    assert blind is not None
    assert blind.value < 0.5


def test_attacks_are_found_by_name_and_taken_as_they_are() -> None:
    assert find_attacks("all") == tuple(ATTACKS.values())
    assert find_attacks("membership,quantization") == (ATTACKS["membership"], ATTACKS["quantization"])
    own = Relearning((3,))
    assert find_attacks((own, "membership")) == (own, ATTACKS["membership"])
    assert find_attacks("") == find_attacks(()) == ()
    with pytest.raises(InputError, match="name='relearning': an attack of this name is registered already"):
        register_attack(own)
    assert ATTACKS["relearning"] == Relearning()


def test_the_command_names_every_attack() -> None:
    command: Any = get_command(app)
    (option,) = (option for option in command.commands["eval"].params if option.name == "attacks")
    assert option.help.startswith(", ".join(ATTACKS))


def test_the_judge_is_asked_and_believed(server: Any) -> None:
    judge = Judge(f"{server.address}/", "small", key="secret")
    for text, expected in (("Yes.", True), ("no", False), ("No, it does not.", False)):
        server.reply = said(text)
        assert judge.is_correct("Which?", "cyst", "a cyst") is expected
    path, key, body = server.sent[0]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer secret", "small", 0)
    assert body["messages"][-1]["content"] == "Question: Which?\nCorrect answer: cyst\nGiven answer: a cyst"
    assert "secret" not in repr(judge)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (said("Perhaps"), "neither yes nor no"),
        (said("nobody knows"), "neither yes nor no"),
        ("{}", "not answer as chat completions do"),
        ("[1]", "not answer as chat completions do"),
        ("<html>", "does not answer"),
    ],
)
def test_a_judge_that_says_nothing_of_use_stops_the_run(server: Any, reply: str, message: str) -> None:
    server.reply = reply
    with pytest.raises(RunError, match=message):
        Judge(server.address, "small").is_correct("Which?", "cyst", "a cyst")


def test_a_judge_that_is_not_there_stops_the_run() -> None:
    with pytest.raises(RunError, match="does not answer"):
        Judge("http://127.0.0.1:9", "small").is_correct("Which?", "cyst", "a cyst")
    with pytest.raises(InputError, match="starts with http"):
        Judge("file:///etc/hosts", "small")
