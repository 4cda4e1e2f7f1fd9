"""A difference is measured on the values alone, in whatever shards they lie, and nothing else counts as one."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from chip.checkpoint import measure as measure_module
from chip.checkpoint import stored_tensor as stored_tensor_module
from chip.checkpoint.diff import CheckpointDiff, ShapeDiff, diff
from chip.checkpoint.layout import INDEX, SINGLE, Checkpoint
from chip.checkpoint.stored_tensor import StoredTensor, same_bytes
from chip.checkpoint.tensor_diff import DIRECTIONS, TensorDiff
from chip.errors import InputError
from chip.model.tensor_names import key_map

Tensors = dict[str, torch.Tensor]


def make(folder: Path, *shards: Mapping[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = [SINGLE] if len(shards) == 1 else [f"model-{i}.safetensors" for i in range(len(shards))]
    for name, tensors in zip(names, shards, strict=True):
        save_file(dict(tensors), folder / name)
    if len(shards) > 1:
        weight_map = {key: name for name, tensors in zip(names, shards, strict=True) for key in tensors}
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def tensors() -> Tensors:
    torch.manual_seed(0)
    return {"matrix": torch.randn(12, 7), "vector": torch.randn(5), "ids": torch.arange(4), "scalar": torch.ones(())}


def one(tmp_path: Path, a: torch.Tensor, b: torch.Tensor) -> TensorDiff:
    """The difference of two checkpoints that hold one tensor."""
    (result,) = diff(make(tmp_path / "a", {"x": a}), make(tmp_path / "b", {"x": b})).tensors
    return result


def test_a_checkpoint_equals_itself_in_other_shards(tmp_path: Path, tensors: Tensors) -> None:
    a = make(tmp_path / "a", tensors)
    b = make(tmp_path / "b", {"vector": tensors.pop("vector")}, tensors)
    steps: list[object] = []

    @contextmanager
    def progress(*what: object) -> Iterator[Callable[[int], None]]:
        steps.append(what)
        yield steps.append

    result = diff(a, str(b), progress)
    assert result.equal
    assert result.changed == ()
    assert [tensor.name for tensor in result.tensors] == ["ids", "matrix", "scalar", "vector"]
    assert steps == [("comparing", 4), 1, 1, 1, 1]
    assert result.to_json() == {
        "equal": True,
        "compared": 4,
        "changed": [],
        "sums": [],
        "outside_layers": [],
        "shape_differs": [],
        "only_in_a": [],
        "only_in_b": [],
    }


def test_only_what_differs_is_measured(tmp_path: Path, tensors: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make(tmp_path / "a", tensors), make(tmp_path / "b", tensors | {"vector": torch.zeros(5)})
    measured: list[str] = []

    def noting(a: StoredTensor, b: StoredTensor) -> TensorDiff:
        measured.append(a.entry.name)
        return TensorDiff(a.entry.name, a.entry.shape, a.entry.dtype, changed=True)

    monkeypatch.setattr(measure_module, "measure", noting)
    assert [tensor.name for tensor in diff(a, b).changed] == ["vector"]
    assert measured == ["vector"]


@pytest.mark.parametrize("shape", [(40, 9), (9, 40), (1, 300), (300, 1), (300,), (4, 5, 6)])
def test_a_tensor_is_never_held_whole(tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = measure_module._Matrix.part

    def noting(matrix: measure_module._Matrix, rows: Sequence[int], begin: int, end: int) -> torch.Tensor:
        sizes.append(len(rows) * (end - begin))
        return plain(matrix, rows, begin, end)

    monkeypatch.setattr(measure_module._Matrix, "part", noting)
    monkeypatch.setattr(measure_module, "_VALUES", 45)
    assert one(tmp_path, torch.zeros(shape), torch.ones(shape)).largest_change == 1
    assert max(sizes) <= 45


def test_linked_shards_are_equal(tmp_path: Path, tensors: Tensors) -> None:
    a, b = make(tmp_path / "a", tensors), make(tmp_path / "b", tensors)
    (b / SINGLE).unlink()
    os.link(a / SINGLE, b / SINGLE)
    assert diff(a, b).equal


def test_names_and_shapes_that_differ_are_listed_apart(tmp_path: Path, tensors: Tensors) -> None:
    a = make(tmp_path / "a", tensors | {"old": torch.zeros(1)})
    b = make(tmp_path / "b", tensors | {"new": torch.zeros(1), "vector": torch.zeros(6)})
    result = diff(a, b)
    assert (result.only_in_a, result.only_in_b, result.shape_differs) == (
        ("old",),
        ("new",),
        (ShapeDiff("vector", (5,), (6,)),),
    )
    assert result.changed == ()
    assert not result.equal


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_measures_are_their_definitions_over_any_blocks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    a, b = (torch.randn(shape).to(dtype) for _ in "ab")
    rows = torch.rand(shape[0]) < 0.5
    b[rows] = a[rows]
    with pytest.MonkeyPatch.context() as blocks:
        blocks.setattr(measure_module, "_VALUES", data.draw(st.integers(1, 20)))
        blocks.setattr(stored_tensor_module, "_BLOCK", data.draw(st.integers(1, 20)))
        result = one(tmp_path_factory.mktemp("pair"), a, b)
    delta = b.double() - a.double()
    assert result.shape == tuple(shape)
    assert result.changed == bool(delta.any())
    assert result.relative_change == pytest.approx(float(delta.norm() / a.double().norm()))
    assert result.largest_change == float(delta.abs().max())
    assert result.rows_changed == float(delta.flatten(1).any(dim=1).double().mean())
    if result.changed:
        assert (result.norm, result.change) == pytest.approx((float(a.double().norm()), float(delta.norm())))
        sigma = torch.linalg.svdvals(delta.flatten(1))
        p = sigma / sigma.sum()
        assert result.effective_rank == pytest.approx(float(torch.special.entr(p).sum().exp()), rel=1e-6)
        share = sigma.square() / sigma.square().sum()
        assert [k for k, _ in result.energy] == [*DIRECTIONS]
        assert [share_of_k for _, share_of_k in result.energy] == pytest.approx(
            [float(share[:k].sum()) for k in DIRECTIONS]
        )
        assert result.spectrum == pytest.approx(sigma[: len(result.spectrum)].tolist())
        assert sigma[len(result.spectrum) :].sum() <= 1e-6 * sigma[0]
    else:
        assert (result.effective_rank, result.energy, result.spectrum) == (None, (), ())


@pytest.mark.parametrize("shape", [(300, 40), (40, 300)])
@pytest.mark.parametrize("rank", [1, 7, 40])
def test_the_effective_rank_of_equal_singular_values_is_the_rank(
    tmp_path: Path, shape: tuple[int, int], rank: int
) -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64)).Q for n in shape)
    result = one(tmp_path, torch.zeros(shape, dtype=torch.float64), 3 * left @ right.T)
    assert result.effective_rank == pytest.approx(rank, rel=1e-5)
    assert result.relative_change == math.inf


def test_the_spectrum_has_the_leading_values_only(tmp_path: Path) -> None:
    result = one(tmp_path, torch.zeros(100, 80), 2 * torch.eye(100, 80))
    assert result.spectrum == pytest.approx((2.0,) * 64)
    assert dict(result.energy) == pytest.approx({1: 1 / 80, 8: 0.1, 64: 0.8})


def test_only_changed_rows_count_towards_the_limit_of_the_gram_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "LARGEST_GRAM", 4)
    a = {"few rows": torch.zeros(9, 9), "all rows": torch.zeros(9, 9), "narrow": torch.zeros(9, 4)}
    b = {"few rows": torch.zeros(9, 9), "all rows": torch.ones(9, 9), "narrow": torch.ones(9, 4)}
    b["few rows"][[1, 2, 5, 8]] = 1.0
    result = {tensor.name: tensor for tensor in diff(make(tmp_path / "a", a), make(tmp_path / "b", b)).tensors}
    assert result["few rows"].effective_rank == pytest.approx(1.0)
    assert result["narrow"].effective_rank == pytest.approx(1.0)
    assert result["all rows"] == replace(
        result["all rows"], changed=True, change=9.0, effective_rank=None, energy=(), spectrum=()
    )


def test_vectors_and_scalars_have_no_rank(tmp_path: Path) -> None:
    a = {"vector": torch.tensor([3.0, 4.0, 0.0, 0.0]), "scalar": torch.tensor(2.0)}
    b = {"vector": torch.tensor([3.0, 4.0, 0.0, 1.0]), "scalar": torch.tensor(1.0)}
    scalar, vector = diff(make(tmp_path / "a", a), make(tmp_path / "b", b)).tensors
    assert scalar == TensorDiff("scalar", (), "F32", True, 0.5, 1.0, None, 1.0, norm=2.0, change=1.0)
    assert vector == TensorDiff("vector", (4,), "F32", True, 0.2, 1.0, None, 0.25, norm=5.0, change=1.0)


def test_a_change_of_dtype_is_measured_by_value(tmp_path: Path) -> None:
    values = torch.randn(4, 4).bfloat16()
    result = one(tmp_path, values, values.float())
    assert result == TensorDiff("x", (4, 4), "BF16 -> F32", changed=True, norm=result.norm)


def test_the_sign_of_zero_is_a_change_without_a_size(tmp_path: Path) -> None:
    assert one(tmp_path, torch.zeros(2, 2), -torch.zeros(2, 2)) == TensorDiff("x", (2, 2), "F32", changed=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_makes_a_measure_nan(tmp_path: Path, value: float) -> None:
    a, b = torch.ones(3, 2), torch.ones(3, 2)
    a[0] = b[0] = value  # the same in both: no difference
    b[1, 0] = value
    result = one(tmp_path, a, b)
    assert result == TensorDiff("x", (3, 2), "F32", True, math.inf, math.inf, None, 1 / 3, norm=2.0, change=math.inf)


def test_a_report_is_json(tmp_path: Path, tensors: Tensors) -> None:
    a = make(tmp_path / "a", tensors | {"zero": torch.zeros(2, 2)})
    b = make(tmp_path / "b", tensors | {"zero": torch.ones(2, 2)})
    report = json.loads(json.dumps(diff(a, b).to_json(), allow_nan=False))
    assert report["equal"] is False
    assert report["compared"] == 5
    (zero,) = report["changed"]
    assert zero["relative_change"] is None
    assert (zero["name"], zero["largest_change"], zero["rows_changed"]) == ("zero", 1.0, 1.0)
    assert zero["effective_rank"] == pytest.approx(1.0)
    assert zero["energy"][0] == [1, pytest.approx(1.0)]
    assert zero["spectrum"] == pytest.approx([2.0])
    assert report["outside_layers"] == [{"name": "zero", "tensors": 1, "changed": 1, "relative_change": None}]
    assert CheckpointDiff((), (), (), ()).equal


def _legacy_and_new(tmp_path: Path) -> tuple[Path, Path]:
    """One small LLaVA under the names that old checkpoints have, and under those of its module."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config={**sizes, "model_type": "llama", "vocab_size": 40, "pad_token_id": 0},
        vision_config={**sizes, "model_type": "clip_vision_model", "image_size": 8, "patch_size": 4},
        image_token_index=3,
        tie_word_embeddings=False,
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "legacy")
    legacy = Checkpoint.open(tmp_path / "legacy")
    parameter_of = {name: parameter for parameter, name in key_map(legacy).items()}
    new = make(tmp_path / "new", {parameter_of[name]: legacy.read(name) for name in legacy.entries})
    (new / "config.json").write_bytes((tmp_path / "legacy" / "config.json").read_bytes())
    return tmp_path / "legacy", new


def test_legacy_names_are_compared_with_new_ones(tmp_path: Path) -> None:
    legacy, new = _legacy_and_new(tmp_path)
    assert diff(legacy, new).equal
    tensors = load_file(new / SINGLE)
    (changed,) = (name for name in tensors if name.endswith("language_model.layers.0.mlp.up_proj.weight"))
    tensors[changed] += 1.0
    head = tensors.pop("lm_head.weight")  # as where it is tied
    save_file({**tensors, "extra": head}, new / SINGLE)
    result = diff(legacy, new)
    (tensor,) = result.changed
    assert (tensor.name, tensor.name_in_b) == ("language_model.model.layers.0.mlp.up_proj.weight", changed)
    assert (result.only_in_a, result.only_in_b) == (("language_model.lm_head.weight",), ("extra",))


def test_without_a_key_map_names_are_compared_as_they_are(tmp_path: Path) -> None:
    legacy, new = _legacy_and_new(tmp_path)
    for folder in (legacy, new):
        (folder / "config.json").write_text('{"model_type": "nonesuch"}')
    result = diff(legacy, new)
    assert not any(tensor.changed for tensor in result.tensors)
    assert "language_model.model.embed_tokens.weight" in result.only_in_a
    assert "model.language_model.embed_tokens.weight" in result.only_in_b


def test_names_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"layers.{i}.x" for i in (0, 2, 10)]
    a, b = make(tmp_path / "a", {name: torch.ones(1) for name in names}), make(tmp_path / "b", {})
    assert diff(a, a).tensors == tuple(TensorDiff(name, (1,), "F32", changed=False) for name in names)
    assert diff(a, b).only_in_a == tuple(names)


def test_a_file_cut_off_while_it_is_read(tmp_path: Path, tensors: Tensors) -> None:
    a, b = Checkpoint.open(make(tmp_path / "a", tensors)), Checkpoint.open(make(tmp_path / "b", tensors))
    first, second = a.stored("matrix"), b.stored("matrix")
    second.path.write_bytes(second.path.read_bytes()[: second.entry.end - 1])
    with pytest.raises(InputError, match="matrix"):
        same_bytes(first, second)
    with pytest.raises(InputError, match="matrix"):
        measure_module.measure(first, second)
