"""A guard: later edits leave as it is what earlier ones took out, and nobody reads whose that was without the key."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.receipt import read_receipt
from chip.checkpoint.weights import weights_digest
from chip.edit_options import EditOptions
from chip.errors import InputError, RunError
from chip.kernels.low_rank import leading_factor
from chip.kernels.symmetric import SymmetricSum
from chip.methods import Chip, Method, Shielded
from chip.methods.base import MeasuredModule
from chip.methods.guard import RANK, Guard
from chip.model.target_modules import Component, TargetModule
from chip.model.tokens import Tokens
from chip.progress import silent
from chip.recording.guard_file import GuardFile
from tests.test_receipt import edit_folder
from tests.test_shielded import SEEDS, TARGET, _statistics, _tokens, _weight

WIDTH = 40
DOWN = TargetModule("layers.0.mlp.down_proj", "down", Component.TEXT, 0, bias=False)


def _matrix(rows: Tensor) -> Tensor:
    return rows.T @ rows


def _metric(width: int) -> tuple[SymmetricSum, Tensor, Tensor]:
    """K, and L with L Lᵀ = K, and its inverse."""
    drawn = torch.randn(width, 2 * width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    matrix = drawn @ drawn.T / width + 0.1 * torch.eye(width, dtype=torch.float64)
    root = torch.linalg.cholesky(matrix)
    return SymmetricSum.of(matrix), root, torch.linalg.inv(root)


@pytest.mark.parametrize("width", [12, 200])  # of the first all directions are looked at
def test_the_leading_factor_is_the_cut_eigendecomposition_in_the_metric(width: int) -> None:
    metric, root, inverse = _metric(width)
    rows = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = _matrix(rows * 0.6 ** torch.arange(width)[:, None])
    values, vectors = torch.linalg.eigh(inverse @ matrix @ inverse.T)
    expected = root @ (vectors[:, -7:] * values[-7:]) @ vectors[:, -7:].T @ root.T
    factor = leading_factor(lambda x: x @ matrix, 7, metric)
    torch.testing.assert_close(_matrix(factor), expected, rtol=0, atol=1e-5 * float(expected.diagonal().max()))


def test_of_few_directions_the_leading_factor_is_all() -> None:
    rows = torch.randn(3, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = leading_factor(lambda x: (x @ rows.T) @ rows, 64, _metric(200)[0])
    assert factor.shape == (3, 200)
    torch.testing.assert_close(_matrix(factor), _matrix(rows))
    assert leading_factor(torch.zeros_like, 64, _metric(200)[0]).shape == (0, 200)


def _later(seed: int) -> tuple[Tokens, Tokens]:
    """Tokens of an edit and of a later one, whose target shares half of what the first one stood out by."""
    first, second = _tokens(seed, WIDTH), _tokens(seed + 1, WIDTH)
    inputs, target = second.inputs.clone(), second.segments == TARGET
    inputs[target] = 0.5 * inputs[target] + 0.5 * first.inputs[target]
    return first, replace(second, inputs=inputs)


@settings(max_examples=10)
@given(SEEDS)
def test_a_later_edit_leaves_what_an_earlier_one_took_out(seed: int) -> None:
    """The outputs for its target's tokens; and still moves its own."""
    first, second = _later(seed)
    method, weight = Shielded(retain_weight=8.0), _weight(seed, WIDTH)
    statistics = _statistics(first)
    update = method.solve(weight, None, statistics)
    assert update is not None
    assert update.metric is not None
    guard = Guard({DOWN.name: Guard().grown(DOWN, method.taken(statistics), update.metric)})
    earlier, own = first.inputs[first.segments == TARGET], second.inputs[second.segments == TARGET]
    back, moved = [], []
    for guarded in (None, guard.at(DOWN)):
        measured = MeasuredModule(update.weight, None, _statistics(second), None, guarded)
        change = method.solve_stage({DOWN: measured})[DOWN].weight - update.weight
        back.append(float(torch.linalg.norm(earlier @ change.T) / torch.linalg.norm(earlier @ weight.T)))
        moved.append(float(torch.linalg.norm(own @ change.T)))
    assert back[0] > 0.1
    assert back[1] < 0.05
    assert moved[1] > 0.3 * moved[0]


def test_without_a_guard_an_edit_is_what_it_was() -> None:
    statistics, method, weight = _statistics(_tokens(0, 8)), Shielded(retain_weight=8.0), _weight(0, 8)
    plain = method.solve(weight, None, statistics)
    assert plain is not None
    (update,) = method.solve_stage({DOWN: MeasuredModule(weight, None, statistics, None)}).values()
    assert torch.equal(update.weight, plain.weight)


def test_a_guard_of_many_edits_has_no_more_directions() -> None:
    guard, total, plain = Guard(), torch.zeros(100, 100, dtype=torch.float64), SymmetricSum.of(torch.eye(100).double())
    for number in range(4):
        rows = torch.randn(30, 100, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        total += _matrix(rows)
        guard = Guard({DOWN.name: guard.grown(DOWN, SymmetricSum.of(_matrix(rows)), plain)})
    factor = guard.factors[DOWN.name]
    assert (factor.shape, factor.dtype) == ((RANK, 100), torch.float32)
    held, most = float(factor.square().sum()), float(torch.linalg.eigvalsh(total)[-RANK:].sum())
    assert 0.95 * most < held < most


# The file.

TAKEN = {DOWN.name: torch.full((2, 5), 0.25), "connector.0": torch.eye(3)}


@dataclass(frozen=True)
class Place:
    """Where a guard lies, and how it is asked for."""

    folder: Path

    @property
    def options(self) -> EditOptions:
        return {"guard": self.folder / "guard", "guard_key": self.folder / "key"}

    def open(self, source: Checkpoint, method: Method | None = None, **options: object) -> GuardFile:
        asked: EditOptions = {**self.options, **options}  # type: ignore[typeddict-item]
        opened = GuardFile.open(source, self.folder / "out", asked, silent, method or Shielded())
        assert opened is not None
        return opened


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("CHIP_GUARD_KEY", raising=False)
    for name, digit in (("key", "4f"), ("other-key", "5e")):
        (tmp_path / name).write_text(digit * 32)
        (tmp_path / name).chmod(0o600)
    return Place(tmp_path)


@pytest.fixture
def edited(place: Place, source: Checkpoint) -> Checkpoint:
    """Behind a guarded edit."""
    opened = place.open(source)
    assert opened.guard.factors == {}
    edit_folder(source, place.folder / "first")
    opened.write(place.folder / "first", TAKEN)
    return Checkpoint.open(place.folder / "first")


def test_a_guard_is_read_by_the_next_edit_and_by_the_same_one_again(
    place: Place, source: Checkpoint, edited: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = place.open(edited).guard.factors
    assert again.keys() == TAKEN.keys()
    assert all(torch.equal(again[name], TAKEN[name]) for name in TAKEN)
    assert place.open(source).guard.factors == {}  # the first edit is made once more, of more targets
    assert "0.25" not in repr(place.open(edited))
    monkeypatch.setenv("CHIP_GUARD_KEY", "4f" * 32)
    assert place.open(edited, guard_key=None).guard.factors.keys() == TAKEN.keys()


def test_a_module_that_a_later_edit_leaves_stays_guarded(place: Place, source: Checkpoint, edited: Checkpoint) -> None:
    edit_folder(edited, place.folder / "second", {"a": torch.zeros(6, 5)})
    new = {DOWN.name: torch.ones(3, 5)}
    place.open(edited).write(place.folder / "second", new)
    last = place.open(Checkpoint.open(place.folder / "second")).guard.factors
    assert torch.equal(last["connector.0"], TAKEN["connector.0"])
    assert torch.equal(last[DOWN.name], new[DOWN.name])
    with pytest.raises(InputError, match="is of the edits of another model"):
        place.open(source)  # two edits back


def test_the_file_is_encrypted_and_ones_own(place: Place, edited: Checkpoint) -> None:
    stored = (place.folder / "guard").read_bytes()
    digest = read_receipt(edited.folder).result_digest
    assert digest == weights_digest(edited)
    assert not any(word.encode() in stored for word in (DOWN.name, "connector", digest, "float", "F32"))
    assert re.fullmatch(rb"chip guard 1 [0-9a-f]{16}\n", stored.partition(b"\n")[0] + b"\n")
    assert (place.folder / "guard").stat().st_mode & 0o077 == 0
    assert not list(place.folder.glob("guard.*"))


def test_what_cannot_be_used_is_refused_in_one_line_and_stays(place: Place, edited: Checkpoint, tmp_path: Path) -> None:
    stored = (tmp_path / "guard").read_bytes()
    with pytest.raises(InputError, match="another key; give that one"):
        place.open(edited, guard_key=tmp_path / "other-key")
    with pytest.raises(InputError, match="goes with save=merged"):
        place.open(edited, save="adapter")
    with pytest.raises(InputError, match="method chip has no use for a guard"):
        place.open(edited, Chip())
    with pytest.raises(InputError, match="a guard's key is needed"):
        place.open(edited, guard_key=None)
    with pytest.raises(InputError, match="goes with guard"):
        GuardFile.open(edited, tmp_path / "out", {"guard_key": tmp_path / "key"}, silent, Shielded())
    with pytest.raises(InputError, match="is no guard, but a folder"):
        place.open(edited, guard=tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        place.open(edited, guard=tmp_path / "none" / "guard")
    for folder in (edited.folder, tmp_path / "out"):
        with pytest.raises(InputError, match="lies in the model's folder"):
            place.open(edited, guard=folder / "guard")
    assert GuardFile.open(edited, tmp_path / "out", {}, silent, Chip()) is None
    assert (tmp_path / "guard").read_bytes() == stored


def test_a_file_that_is_not_as_it_was_written_is_refused(place: Place, edited: Checkpoint) -> None:
    file = place.folder / "guard"
    stored = file.read_bytes()
    flipped = bytearray(stored)
    flipped[-40] ^= 1
    for content in (bytes(flipped), stored[:-1], stored[:40], stored[:20], stored + b"x"):
        file.write_bytes(content)
        with pytest.raises(InputError, match="is torn or was changed"):
            place.open(edited)
    for content in (b"", b"{}", stored[:5]):
        file.write_bytes(content)
        with pytest.raises(InputError, match="is no guard"):
            place.open(edited)


def test_a_disk_that_refuses_leaves_the_guard_as_it_was(
    place: Place, edited: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = (place.folder / "guard").read_bytes()
    edit_folder(edited, place.folder / "second", {"a": torch.zeros(6, 5)})
    opened = place.open(edited)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chip.recording.guard_file.write_whole", full)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"):
        opened.write(place.folder / "second", {})
    assert (place.folder / "guard").read_bytes() == stored
