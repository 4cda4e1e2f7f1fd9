"""What differs between two checkpoints, tensor by tensor, whatever their shards."""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from chip.checkpoint.layout import Checkpoint, TensorEntry

_BLOCK = 1 << 20  # bytes compared at once
_VALUES = 1 << 22  # values taken to float64 at once


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """How one tensor of `b` differs from the tensor of that name in `a`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As stored in `a`; as `A -> B` where `b` has another."""
    changed: bool
    """Whether the stored bytes, or the dtype, differ."""
    relative_change: float = 0.0
    """Frobenius norms, ‖b − a‖ / ‖a‖; infinite where a is zero and b is not."""
    largest_change: float = 0.0
    """Largest |b − a| of a single value."""
    effective_rank: float | None = None
    """Of b − a. None below two dimensions, where no value differs, and where a difference is not finite."""
    rows_changed: float = 0.0
    """Share of rows (first dimension) in which a value differs."""


@dataclass(frozen=True)
class CheckpointDiff:
    """What differs between the checkpoints `a` and `b`. Names are those on disk, sorted."""

    tensors: tuple[TensorDiff, ...]
    """One for each name that both hold with the same shape."""
    shape_differs: tuple[str, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]

    @property
    def changed(self) -> tuple[TensorDiff, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.changed)

    @property
    def equal(self) -> bool:
        """Whether both hold the same tensors, bit for bit."""
        return not (self.changed or self.shape_differs or self.only_in_a or self.only_in_b)

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`: the changed tensors, and how many were compared. JSON lacks infinity: None."""
        return {
            "equal": self.equal,
            "compared": len(self.tensors),
            "changed": [
                {key: None if value == math.inf else value for key, value in asdict(tensor).items()}
                for tensor in self.changed
            ],
            "shape_differs": list(self.shape_differs),
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
        }


def diff(a: Path, b: Path, progress: Callable[[str], None] | None = None) -> CheckpointDiff:
    """Compare the checkpoint folders `a` and `b`; `progress` is told each tensor's name before its turn.

    Bytes are compared in blocks, and only tensors whose bytes differ are loaded, one pair at a time. Raises
    `InputError` as `Checkpoint.open` does, and where a tensor that differs has a dtype chip cannot read.
    """
    first, second = Checkpoint.open(a), Checkpoint.open(b)
    tensors: list[TensorDiff] = []
    shape_differs: list[str] = []
    for name in sorted(first.entries.keys() & second.entries.keys()):
        if progress is not None:
            progress(name)
        if first.entries[name].shape != second.entries[name].shape:
            shape_differs.append(name)
        else:
            tensors.append(_compare(first, second, name))
    return CheckpointDiff(
        tuple(tensors),
        tuple(shape_differs),
        only_in_a=tuple(sorted(first.entries.keys() - second.entries.keys())),
        only_in_b=tuple(sorted(second.entries.keys() - first.entries.keys())),
    )


def _compare(first: Checkpoint, second: Checkpoint, name: str) -> TensorDiff:
    a, b = first.entries[name], second.entries[name]
    if a.dtype != b.dtype:
        return _measure(name, f"{a.dtype} -> {b.dtype}", first.read(name), second.read(name))
    if _same_bytes(first.folder / a.shard, a, second.folder / b.shard, b):
        return TensorDiff(name, a.shape, a.dtype, changed=False)
    return _measure(name, a.dtype, first.read(name), second.read(name))


def _same_bytes(path_a: Path, a: TensorEntry, path_b: Path, b: TensorEntry) -> bool:
    with path_a.open("rb") as file_a, path_b.open("rb") as file_b:
        if a.begin == b.begin and os.path.samestat(os.fstat(file_a.fileno()), os.fstat(file_b.fileno())):
            return True  # one file under two names, as where a copy was linked
        file_a.seek(a.begin)
        file_b.seek(b.begin)
        sizes = (min(_BLOCK, a.end - position) for position in range(a.begin, a.end, _BLOCK))
        return all(file_a.read(size) == file_b.read(size) for size in sizes)


def _measure(name: str, dtype: str, a: torch.Tensor, b: torch.Tensor) -> TensorDiff:
    """Sums over blocks, in float64. A change to or from a value that is not finite counts as infinite."""
    shape = tuple(a.shape)
    rows = shape[0] if shape else 1
    A, B = (tensor.reshape(rows, math.prod(shape[1:])) for tensor in (a, b))
    wide = A.shape[0] < A.shape[1]
    if wide:  # blocks run along the longer side, the Gram matrix has the shorter
        A, B = A.T, B.T
    long, short = A.shape
    step = max(1, _VALUES // max(1, short))
    square_a = square = largest = 0.0
    changed_rows = torch.zeros(rows, dtype=torch.bool)
    gram = torch.zeros(short, short, dtype=torch.float64)
    for begin in range(0, long, step):
        old, new = (matrix[begin : begin + step].double() for matrix in (A, B))  # (block, short)
        same = (old == new) | (old.isnan() & new.isnan())
        delta = torch.where(same, 0.0, new - old).nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        square_a += old.nan_to_num(0.0, 0.0, 0.0).square().sum().item()
        square += delta.square().sum().item()
        largest = max(largest, delta.abs().max().item())
        gram += delta.T @ delta
        if wide:
            changed_rows |= ~same.all(dim=0)
        else:
            changed_rows[begin : begin + step] = ~same.all(dim=1)
    relative = math.sqrt(square / square_a) if square_a else math.inf if square else 0.0
    return TensorDiff(
        name,
        shape,
        dtype,
        changed=True,
        relative_change=relative,
        largest_change=largest,
        effective_rank=_effective_rank(gram) if len(shape) > 1 and 0 < square < math.inf else None,
        rows_changed=changed_rows.sum().item() / max(1, rows),
    )


def _effective_rank(gram: torch.Tensor) -> float:
    """exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σσ, from the Gram matrix (n, n), float64, of a matrix that is not zero.

    The definition is that of Roy and Vetterli, "The effective rank: a measure of effective dimensionality"
    (2007). Squaring costs half of the digits, which leaves as many as a singular value decomposition in
    float32 gives, and is several times faster on the matrices of a language model. What rounding hides
    counts as zero.
    """
    eigenvalues = torch.linalg.eigvalsh(gram)
    floor = eigenvalues[-1] * len(gram) * torch.finfo(torch.float64).eps
    sigma = eigenvalues[eigenvalues > floor].sqrt()
    p = sigma / sigma.sum()
    return float(torch.exp(-(p * p.log()).sum()))
