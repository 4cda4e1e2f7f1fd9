"""A difference is measured on the values alone, in whatever shards they lie, and nothing else counts as one."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from chip.checkpoint import diff as diff_module
from chip.checkpoint.diff import CheckpointDiff, TensorDiff, diff
from chip.checkpoint.layout import INDEX, SINGLE, Checkpoint

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
    (found,) = diff(make(tmp_path / "a", {"x": a}), make(tmp_path / "b", {"x": b})).tensors
    return found


def test_a_checkpoint_equals_itself_in_other_shards(tmp_path: Path, tensors: Tensors) -> None:
    a = make(tmp_path / "a", tensors)
    b = make(tmp_path / "b", {"vector": tensors.pop("vector")}, tensors)
    told: list[str] = []
    found = diff(a, b, told.append)
    assert found.equal
    assert found.changed == ()
    assert told == [tensor.name for tensor in found.tensors] == ["ids", "matrix", "scalar", "vector"]
    assert found.to_json() == {
        "equal": True,
        "compared": 4,
        "changed": [],
        "shape_differs": [],
        "only_in_a": [],
        "only_in_b": [],
    }


def test_equal_tensors_are_not_loaded(tmp_path: Path, tensors: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make(tmp_path / "a", tensors), make(tmp_path / "b", tensors | {"vector": torch.zeros(5)})
    read: list[str] = []
    plain = Checkpoint.read

    def noting(checkpoint: Checkpoint, name: str) -> torch.Tensor:
        read.append(name)
        return plain(checkpoint, name)

    monkeypatch.setattr(Checkpoint, "read", noting)
    assert [tensor.name for tensor in diff(a, b).changed] == ["vector"]
    assert read == ["vector", "vector"]


def test_linked_shards_are_equal(tmp_path: Path, tensors: Tensors) -> None:
    a, b = make(tmp_path / "a", tensors), make(tmp_path / "b", tensors)
    (b / SINGLE).unlink()
    os.link(a / SINGLE, b / SINGLE)
    assert diff(a, b).equal


def test_files_are_compared_without_transformers() -> None:
    code = "import sys, chip.checkpoint.diff, chip.checkpoint.patch; sys.exit('transformers' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_names_and_shapes_that_differ_are_listed_apart(tmp_path: Path, tensors: Tensors) -> None:
    a = make(tmp_path / "a", tensors | {"old": torch.zeros(1)})
    b = make(tmp_path / "b", tensors | {"new": torch.zeros(1), "vector": torch.zeros(6)})
    found = diff(a, b)
    assert (found.only_in_a, found.only_in_b, found.shape_differs) == (("old",), ("new",), ("vector",))
    assert found.changed == ()
    assert not found.equal


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
        blocks.setattr(diff_module, "_VALUES", data.draw(st.integers(1, 20)))
        blocks.setattr(diff_module, "_BLOCK", data.draw(st.integers(1, 20)))
        found = one(tmp_path_factory.mktemp("pair"), a, b)
    delta = b.double() - a.double()
    assert found.shape == tuple(shape)
    assert found.changed == bool(delta.any())
    assert found.relative_change == pytest.approx(float(delta.norm() / a.double().norm()))
    assert found.largest_change == float(delta.abs().max())
    assert found.rows_changed == float(delta.flatten(1).any(dim=1).double().mean())
    if found.changed:
        p = torch.linalg.svdvals(delta.flatten(1))
        p = p / p.sum()
        assert found.effective_rank == pytest.approx(float(torch.special.entr(p).sum().exp()), rel=1e-6)
    else:
        assert found.effective_rank is None


@pytest.mark.parametrize("shape", [(300, 40), (40, 300)])
@pytest.mark.parametrize("rank", [1, 7, 40])
def test_the_effective_rank_of_equal_singular_values_is_the_rank(
    tmp_path: Path, shape: tuple[int, int], rank: int
) -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64)).Q for n in shape)
    found = one(tmp_path, torch.zeros(shape, dtype=torch.float64), 3 * left @ right.T)
    assert found.effective_rank == pytest.approx(rank, rel=1e-5)
    assert found.relative_change == math.inf


def test_vectors_and_scalars_have_no_rank(tmp_path: Path) -> None:
    a = {"vector": torch.tensor([3.0, 4.0, 0.0, 0.0]), "scalar": torch.tensor(2.0)}
    b = {"vector": torch.tensor([3.0, 4.0, 0.0, 1.0]), "scalar": torch.tensor(1.0)}
    scalar, vector = diff(make(tmp_path / "a", a), make(tmp_path / "b", b)).tensors
    assert scalar == TensorDiff("scalar", (), "F32", True, 0.5, 1.0, None, 1.0)
    assert vector == TensorDiff("vector", (4,), "F32", True, 0.2, 1.0, None, 0.25)


def test_a_change_of_dtype_is_measured_by_value(tmp_path: Path) -> None:
    values = torch.randn(4, 4).bfloat16()
    found = one(tmp_path, values, values.float())
    assert found == TensorDiff("x", (4, 4), "BF16 -> F32", changed=True)


def test_the_sign_of_zero_is_a_change_without_a_size(tmp_path: Path) -> None:
    assert one(tmp_path, torch.zeros(2, 2), -torch.zeros(2, 2)) == TensorDiff("x", (2, 2), "F32", changed=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_makes_a_measure_nan(tmp_path: Path, value: float) -> None:
    a, b = torch.ones(3, 2), torch.ones(3, 2)
    a[0] = b[0] = value  # the same in both: no difference
    b[1, 0] = value
    found = one(tmp_path, a, b)
    assert found == TensorDiff("x", (3, 2), "F32", True, math.inf, math.inf, None, 1 / 3)


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
    assert CheckpointDiff((), (), (), ()).equal
