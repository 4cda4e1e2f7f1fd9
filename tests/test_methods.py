"""The methods that the benchmark compares: theorems of the closed forms, losses by hand, and what all must keep to."""

from __future__ import annotations

from dataclasses import replace
from math import e, log
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.forgetting.methods import (
    CONTROLS,
    GRID_SIZE,
    METHODS,
    TRAINED,
    BenchmarkMethod,
    Retrained,
    authors,
    measured,
)
from benchmarks.forgetting.methods.authors import AuthorsChip
from benchmarks.forgetting.methods.base import changed_weights
from benchmarks.forgetting.methods.controls import Control, RandomChange, RandomProjection, rank_of, shuffled
from benchmarks.forgetting.methods.edits import Edit
from benchmarks.forgetting.methods.finetuning import FineTuning
from benchmarks.forgetting.methods.losses import Answers, concatenated, kl_divergence, negative_preference
from benchmarks.forgetting.methods.neurons import Kvw, Manu, weakening
from benchmarks.forgetting.methods.nullu import Nullu
from benchmarks.forgetting.methods.subspaces import Contrastive, Kodge, Oblique
from benchmarks.forgetting.methods.trained import REFUSALS, GradDiff, GradientAscent, Idk, Npo
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import write_patched
from chip.data.hierarchy import Hierarchy
from chip.data.record import Record
from chip.data.request import ForgetRequest, Partition
from chip.kernels.subspace import leading_basis
from chip.methods import Chip
from chip.model.loading import VLM
from chip.model.restoring import restoring
from chip.model.tokens import SegmentRecords, TokenRole, Tokens

SEEDS = st.integers(0, 2**32 - 1)
CPU = torch.device("cpu")
PATHS = [
    *(("i", "target", study) for study in ("s1", "s2")),
    *(("i", "sibling", study) for study in ("s3", "s4")),
    ("j", "far", "s5"),
]
FORGET, EACH, WIDTH = 2, 40, 8
"""How many records are forgotten, the first ones; tokens of each record; their width."""


def _request() -> ForgetRequest:
    hierarchy = Hierarchy([Record("q", "a", path, None) for path in PATHS])
    return ForgetRequest.of(hierarchy, ["target"])


def _inputs(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(EACH * len(PATHS), WIDTH, generator=generator, dtype=torch.float64)


def _statistics(method: Edit, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """What the method collects of these tokens, of which every fourth stands for a piece of the image."""
    records = torch.arange(len(PATHS))
    outputs = inputs @ weight.T + (0 if bias is None else bias)
    number = torch.arange(len(inputs))
    image, owners = number % 4 == 0, SegmentRecords(records, records, len(PATHS))
    statistics = method.statistics(method.record_weights(_request(), CPU), weight.shape[1], weight.shape[0])
    statistics.update(
        Tokens(
            inputs,
            outputs,
            ids=torch.where(image, 0, 7),
            roles=torch.where(image, TokenRole.IMAGE, TokenRole.ANSWER),
            segments=records.repeat_interleave(EACH),
            owners=owners,
            starts=number % EACH == 0,
        )
    )
    return statistics


def _edited(method: Edit, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    update = method.solve(weight, bias, _statistics(method, inputs, weight, bias))
    assert update is not None
    return update.weight, update.bias


def _weight(seed: int, rows: int = 5) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def _apart(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs with the forgotten in the first half of the dimensions and the retained in the other; each."""
    forget, retain = inputs.clone()[: FORGET * EACH], inputs.clone()[FORGET * EACH :]
    forget[:, WIDTH // 2 :] = 0
    retain[:, : WIDTH // 2] = 0
    return forget, retain


@given(SEEDS)
def test_the_oblique_projector_nulls_the_directions_and_no_other_moves_the_retained_less(seed: int) -> None:
    inputs, identity = _inputs(seed), torch.eye(WIDTH, dtype=torch.float64)
    method = Oblique(ridge=1e-9)
    statistics = _statistics(method, inputs, identity)
    basis = leading_basis(statistics.directions(identity), 1.0)
    projector, _ = _edited(method, inputs, identity)  # of W = I the update is P itself
    torch.testing.assert_close(projector @ basis, torch.zeros_like(basis), atol=1e-8, rtol=0)
    torch.testing.assert_close(projector @ projector, projector)

    retained = inputs[FORGET * EACH :]

    def moved(other: Tensor) -> Tensor:
        return (retained - retained @ other.T).square().sum()

    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        left = torch.randn(basis.shape, generator=generator, dtype=torch.float64)
        elsewhere = identity - basis @ torch.linalg.solve(left.T @ basis, left.T)
        noise = torch.randn(identity.shape, generator=generator, dtype=torch.float64)
        nearby = projector + 1e-3 * noise @ (identity - basis @ basis.T)
        for other in (elsewhere, nearby, identity - basis @ basis.T):
            torch.testing.assert_close(other @ basis, torch.zeros_like(basis), atol=1e-8, rtol=0)
            assert moved(projector) <= moved(other) + 1e-9


@given(SEEDS)
def test_the_oblique_projector_knows_outputs_from_inputs(seed: int) -> None:
    inputs, weight = _inputs(seed), _weight(seed)
    bias = torch.arange(5.0, dtype=torch.float64)
    statistics = _statistics(Oblique(), inputs, weight, bias)
    outputs = inputs[FORGET * EACH :] @ weight.T + bias
    torch.testing.assert_close(statistics.retained(weight, bias), outputs.T @ outputs / len(outputs))
    edited, edited_bias = _edited(Oblique(), inputs, weight, bias)
    assert edited_bias is not None
    projector, _ = _edited(Oblique(ridge=1e9), inputs, weight, bias)
    basis = leading_basis(statistics.directions(weight), 1.0)
    torch.testing.assert_close(projector, weight - basis @ (basis.T @ weight))  # an endless ridge: orthogonal
    change = torch.cat((edited - weight, (edited_bias - bias)[:, None]), 1)
    torch.testing.assert_close(basis @ (basis.T @ change), change)  # only along Q


@given(SEEDS, st.floats(1, 1e3), st.floats(1, 1e3))
def test_kodge_leaves_what_only_the_retained_show_and_takes_what_only_the_forgotten_do(
    seed: int, forget: float, retain: float
) -> None:
    mine, others = _apart(_inputs(seed))
    weight, inputs = _weight(seed), torch.cat((mine, others))
    edited, _ = _edited(Kodge(forget=forget, retain=retain), inputs, weight)
    torch.testing.assert_close(others @ edited.T, others @ weight.T)
    all_of_it, _ = _edited(Kodge(forget=1e12, retain=retain), inputs, weight)
    torch.testing.assert_close(mine @ all_of_it.T, torch.zeros(len(mine), 5, dtype=torch.float64), atol=1e-6, rtol=0)


@given(SEEDS)
def test_kodge_leaves_what_the_forgotten_share_with_the_retained(seed: int) -> None:
    inputs, weight = _inputs(seed), _weight(seed)
    edited, _ = _edited(Kodge(forget=1e12, retain=1e12), inputs, weight)
    torch.testing.assert_close(edited, weight, atol=1e-6, rtol=0)


@given(SEEDS, st.integers(1, WIDTH))
def test_contrastive_directions_are_gone_and_the_others_untouched(seed: int, rank: int) -> None:
    mine, others = _apart(_inputs(seed))
    weight = _weight(seed)
    edited, _ = _edited(Contrastive(rank=rank), torch.cat((mine, others)), weight)
    torch.testing.assert_close(others @ edited.T, others @ weight.T)
    values, vectors = torch.linalg.eigh(mine.T @ mine)
    top = vectors[:, values > 1e-9 * values[-1]][:, -rank:]
    torch.testing.assert_close(edited, weight - weight @ top @ top.T)


def test_contrastive_changes_nothing_where_the_retained_show_it_all() -> None:
    inputs, weight, method = _inputs(0), _weight(0), Contrastive(contrast=100)
    assert method.solve(weight, None, _statistics(method, inputs, weight)) is None


@given(SEEDS, st.integers(1, FORGET))
def test_nullu_takes_the_leading_differences_out_of_whole_rows(seed: int, rank: int) -> None:
    inputs, weight = _inputs(seed), _weight(seed)
    edited, _ = _edited(Nullu(rank=rank), inputs, weight)
    means = (inputs @ weight.T).reshape(len(PATHS), EACH, -1).mean(1)
    differences = means[:FORGET] - means[FORGET:4].mean(0)  # all ask the same, and two records are siblings'
    _, _, right = torch.linalg.svd(differences, full_matrices=False)
    torch.testing.assert_close(edited, weight - right[:rank].T @ (right[:rank] @ weight))


@given(SEEDS, st.integers(1, WIDTH))
def test_manu_zeroes_so_many_units_and_no_other_weight(seed: int, units: int) -> None:
    inputs, weight = _inputs(seed), _weight(seed)
    edited, _ = _edited(Manu(share=units / WIDTH), inputs, weight)
    zeroed = (edited == 0).all(0)
    assert int(zeroed.sum()) == units
    assert torch.equal(edited[:, ~zeroed], weight[:, ~zeroed])


def test_manu_takes_the_unit_that_only_the_forgotten_use() -> None:
    inputs = _inputs(0)
    inputs[FORGET * EACH :, 3] *= 0.01
    edited, _ = _edited(Manu(share=1 / WIDTH), inputs, _weight(0))
    assert (edited == 0).all(0).nonzero().tolist() == [[3]]
    forget = inputs[: FORGET * EACH]
    text = forget[torch.arange(len(forget)) % 4 != 0]
    expected = [text.abs().mean(0), (text.abs() > 0.1).double().mean(0), text.std(0, correction=0)]
    importance = _statistics(Manu(), inputs, _weight(0)).importance[1, 0]
    torch.testing.assert_close(importance, torch.stack([*expected, text.square().mean(0).sqrt()]))


def test_a_unit_is_weakened_by_how_much_more_the_forgotten_use_it() -> None:
    forget, retain = torch.tensor([e, 1.0, 0.1, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(weakening(forget, retain, 0.5), torch.tensor([e**-0.5, 1.0, 1.0, 1.0]))


LOGITS = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 2.0], [0.0, 3.0, 0.0]])


def _answers(logits: Tensor) -> Answers:
    """Two answers, of two tokens and of one."""
    return Answers(logits, torch.tensor([0, 2, 1]), torch.tensor([0, 0, 1]))


def _gradient(loss: Any) -> Tensor:
    logits = LOGITS.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(_answers(logits)), logits)
    return gradient


def test_ascent_and_descent_pull_the_answers_tokens_apart() -> None:
    probabilities, wanted = LOGITS.softmax(-1), torch.eye(3)[torch.tensor([0, 2, 1])]
    by_hand = (probabilities - wanted) / 3  # mean over three tokens
    torch.testing.assert_close(_gradient(lambda answers: answers.cross_entropy), by_hand)
    assert (by_hand[wanted.bool()] < 0).all()  # a step against it makes the answer more probable
    assert (by_hand[~wanted.bool()] > 0).all()


def test_log_probability_is_summed_over_each_answers_tokens() -> None:
    logs = LOGITS.log_softmax(-1)
    expected = torch.stack((logs[0, 0] + logs[1, 2], logs[2, 1]))
    torch.testing.assert_close(_answers(LOGITS).log_probability, expected)
    twice = concatenated([_answers(LOGITS), _answers(LOGITS)])
    torch.testing.assert_close(twice.log_probability, expected.repeat(2))


def test_negative_preference_is_ascent_at_first_and_stops_when_it_is_forgotten() -> None:
    same = torch.tensor([-2.0, -3.0])
    assert negative_preference(same, same, 0.1).item() == pytest.approx(20 * log(2))

    def pull(log_probability: Tensor, beta: float) -> Tensor:
        log_probability = log_probability.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(negative_preference(log_probability, same, beta), log_probability)
        return gradient

    torch.testing.assert_close(pull(same, 0.1), torch.full((2,), 0.5))  # of mean log π: gradient ascent
    torch.testing.assert_close(pull(same - 10, 1e-6), torch.full((2,), 0.5))  # β → 0: ascent for ever
    assert (pull(same - 100, 1.0) < 1e-6).all()


def test_divergence_is_least_at_the_reference() -> None:
    reference = LOGITS.log_softmax(-1)
    assert kl_divergence(reference, reference).item() == pytest.approx(0, abs=1e-7)
    at_reference = _gradient(lambda answers: kl_divergence(reference, answers.logs))
    torch.testing.assert_close(at_reference, torch.zeros(3, 3), atol=1e-6, rtol=0)
    other = LOGITS.flip(0).log_softmax(-1)
    by_hand = (other.exp() * (other - reference)).sum() / 3
    torch.testing.assert_close(kl_divergence(other, reference), by_hand)


@pytest.fixture(scope="module")
def forget_request(hierarchy: Hierarchy) -> ForgetRequest:
    """A part of the demo: some records of the target's institution."""
    target = hierarchy.find("patient_17")
    assert target.parent is not None
    own, others = hierarchy.records_of(target), hierarchy.records_of(target.parent)
    few = Hierarchy([hierarchy.records[i] for i in sorted({*own[::8], *others[::24]})])
    return ForgetRequest(few, Partition.of(few, [target]))


@pytest.fixture
def checkpoint(hospital: Path) -> Checkpoint:
    return Checkpoint.open(hospital / "ckpt")


CHEAP = Nullu(span="0", rank=2)
"""An edit of one matrix."""


def _quick(method: BenchmarkMethod) -> BenchmarkMethod:
    """With less to do."""
    match method:
        case FineTuning():
            return replace(method, steps=2, batch=4)
        case Control():
            return replace(method, like=CHEAP)
        case Edit():
            return replace(method, span="0")
        case Kvw():
            return replace(method, passes=1)
    return method


@pytest.mark.parametrize("name", METHODS)
def test_every_method_leaves_the_model_as_it_was_and_gives_what_can_be_written(
    name: str, vlm: VLM, checkpoint: Checkpoint, forget_request: ForgetRequest, tmp_path: Path
) -> None:
    before = {name: parameter.clone() for name, parameter in vlm.model.named_parameters()}
    applied = measured(_quick(METHODS[name].grid()[0]), vlm, checkpoint, forget_request, seed=0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in vlm.model.named_parameters())
    assert not any(parameter.requires_grad for parameter in vlm.model.parameters())
    assert applied.changed_weights > 0
    assert applied.seconds > 0
    write_patched(checkpoint, tmp_path / "written", applied.tensors)
    written = Checkpoint.open(tmp_path / "written")
    assert (
        changed_weights(checkpoint, {each: written.read(each) for each in applied.tensors}) == applied.changed_weights
    )


def test_everyone_has_the_same_number_of_tries_and_says_where_it_comes_from() -> None:
    for method in METHODS.values():
        grid = method.grid()
        assert len(grid) == GRID_SIZE
        assert len(set(map(repr, grid))) == GRID_SIZE
        assert all(type(each) is method for each in grid)
        assert method.source
        assert method.trains == (method in TRAINED)


def test_the_authors_edit_no_connector_of_a_llava_no_bias_and_layers_by_number(
    vlm: VLM, checkpoint: Checkpoint, forget_request: ForgetRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = AuthorsChip(top_k=1.0)
    tensors = method.apply(vlm, checkpoint, forget_request, seed=0)
    assert {name.rpartition("layers.")[2] for name in tensors} == {
        f"{len(vlm.layers) - 1}.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")
    }  # too shallow for theirs: the paper's share
    monkeypatch.setattr(authors, "FIRST_LAYER", 1)
    monkeypatch.setattr(authors, "LAST_LAYER", 2)
    tensors = method.apply(vlm, checkpoint, forget_request, seed=0)
    assert {name.rpartition("layers.")[2][0] for name in tensors} == {"1", "2"}
    weight, bias = _weight(0), torch.ones(5, dtype=torch.float64)
    _, paper = _edited(Chip(top_k=1.0), _inputs(0), weight, bias)  # type: ignore[arg-type]
    edited, same = _edited(method, _inputs(0), weight, bias)
    assert paper is not None
    assert same is None
    torch.testing.assert_close(edited, _edited(Chip(top_k=1.0), _inputs(0), weight, bias)[0])  # type: ignore[arg-type]


def test_an_activation_of_the_authors_is_one_image_token_where_all_tokens_are_of_images() -> None:
    inputs, records = _inputs(0), torch.arange(len(PATHS))
    lengths = torch.tensor([1, 2, 3, 4, 5])
    outputs = inputs[: int(lengths.sum())]
    tokens = Tokens(
        outputs,
        outputs,
        ids=torch.zeros(len(outputs), dtype=torch.int64),
        roles=torch.full((len(outputs),), TokenRole.IMAGE),
        segments=records.repeat_interleave(lengths),
        owners=SegmentRecords(records, records, len(PATHS)),
        starts=torch.zeros(len(outputs), dtype=torch.bool),
    )
    theirs, ours = (
        method.statistics(method.record_weights(_request(), CPU), WIDTH, WIDTH) for method in (AuthorsChip(), Chip())
    )
    for statistics in (theirs, ours):
        statistics.update(tokens)
    forget, retain = outputs[:3], outputs[3:]
    torch.testing.assert_close(theirs.magnitude.mean, torch.stack((forget.abs().mean(0), retain.abs().mean(0))))
    siblings = outputs[3:10].mean(0)  # 3 tokens of the one, 4 of the other
    torch.testing.assert_close(theirs.around.mean, siblings.repeat(2, 1))
    of_records = torch.stack([part.mean(0) for part in torch.split(outputs, lengths.tolist())])
    torch.testing.assert_close(ours.around.mean, of_records[2:4].mean(0).repeat(2, 1))


def test_kvw_scales_columns_of_down_proj_and_nothing_else(
    vlm: VLM, checkpoint: Checkpoint, forget_request: ForgetRequest
) -> None:
    tensors = Kvw(gamma=0.4, passes=1).apply(vlm, checkpoint, forget_request, seed=0)
    assert all(name.endswith("mlp.down_proj.weight") for name in tensors)
    for name, new in tensors.items():
        scale = new / checkpoint.read(name).float()
        columns = scale.nanmedian(0).values
        assert ((columns > 0) & (columns <= 1)).all()
        assert columns.min() < 0.9
        torch.testing.assert_close(new, checkpoint.read(name).float() * columns, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", [GradientAscent(), Idk(), RandomChange(), Kvw()])
def test_seeds_reproduce(
    method: BenchmarkMethod, vlm: VLM, checkpoint: Checkpoint, forget_request: ForgetRequest
) -> None:
    first, again, other = (_quick(method).apply(vlm, checkpoint, forget_request, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_reaches_connector_and_text_model_and_not_the_tower(
    vlm: VLM, checkpoint: Checkpoint, forget_request: ForgetRequest
) -> None:
    tensors = GradDiff(steps=1, batch=2).apply(vlm, checkpoint, forget_request, seed=0)
    expected = {name for name in checkpoint.entries if "vision_tower" not in name}
    assert set(tensors) == expected


def test_training_lowers_the_loss(vlm: VLM, checkpoint: Checkpoint, forget_request: ForgetRequest) -> None:
    """On the very batch it is trained on."""
    losses: list[float] = []

    class Watched(Npo):
        def loss(self, step: Any) -> Tensor:
            value = super().loss(step)
            losses.append(value.item())
            return value

    Watched(rate=3e-4, steps=6, batch=64).apply(vlm, checkpoint, forget_request, seed=0)
    assert losses[-1] < losses[0]


def test_refusals_take_the_place_of_answers(forget_request: ForgetRequest) -> None:
    record = forget_request.hierarchy.records[0]
    assert Idk().other_answer(record, [], lambda count: count - 1) == REFUSALS[-1]
    assert GradDiff().other_answer(record, [], lambda count: 0) == record.answer


def test_random_controls_change_as_much_as_what_they_control(
    vlm: VLM, checkpoint: Checkpoint, forget_request: ForgetRequest
) -> None:
    theirs = CHEAP.apply(vlm, checkpoint, forget_request, seed=0)
    for control in (RandomProjection(like=CHEAP), RandomChange(like=CHEAP)):
        tensors = control.apply(vlm, checkpoint, forget_request, seed=0)
        assert tensors.keys() == theirs.keys()
        for name, new in tensors.items():
            old = checkpoint.read(name).double()
            meant = theirs[name].double() - old
            torch.testing.assert_close(torch.linalg.norm(new - old), torch.linalg.norm(meant))
            if isinstance(control, RandomProjection) and old.dim() == 2:
                assert int(torch.linalg.matrix_rank(new - old)) == rank_of(meant)


def test_rank_is_that_of_most_of_the_energy() -> None:
    assert rank_of(torch.diag(torch.tensor([3.0, 1.0, 0.1]))) == 2
    assert rank_of(torch.ones(4, 4)) == 1


def test_shuffled_labels_name_as_many_others(forget_request: ForgetRequest) -> None:
    moved = shuffled(forget_request, seed=0)
    records, were = moved.hierarchy.records, forget_request.hierarchy.records
    assert [replace(new, path=()) for new in records] == [replace(old, path=()) for old in were]  # only labels moved
    assert len(moved.partition.forget) == len(forget_request.partition.forget)
    trained = [i for i in moved.partition.forget if not records[i].held_out]
    assert not set(trained) & set(forget_request.partition.forget)
    assert moved.partition.targets == forget_request.partition.targets
    assert shuffled(forget_request, seed=0) != shuffled(forget_request, seed=1)


def test_retraining_is_the_reference_checkpoint(
    vlm: VLM, checkpoint: Checkpoint, forget_request: ForgetRequest, tmp_path: Path
) -> None:
    name = min(checkpoint.entries)
    write_patched(checkpoint, tmp_path / "reference", {name: checkpoint.read(name).float() + 1})
    tensors = Retrained(tmp_path / "reference").apply(vlm, checkpoint, forget_request, seed=0)
    assert changed_weights(checkpoint, tensors) == checkpoint.read(name).numel()
    assert tensors.keys() == checkpoint.entries.keys()


def test_the_model_is_restored_after_an_error(vlm: VLM) -> None:
    name = "model.multi_modal_projector.linear_1.bias"
    before = vlm.parameter(name).clone()

    def fail() -> None:
        with restoring(vlm, [name]):
            vlm.set_parameter(name, before + 1)
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        fail()
    assert torch.equal(vlm.parameter(name), before)


def test_controls_are_of_ours() -> None:
    assert all(issubclass(control, Control) for control in CONTROLS)
