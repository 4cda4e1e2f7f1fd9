"""How far two stored tensors are apart, with neither of them ever held in memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.linalg.blas import dsyrk
from torch import Tensor

from chip.checkpoint.stored_tensor import Source, StoredTensor
from chip.checkpoint.tensor_diff import DIRECTIONS, LARGEST_GRAM, TensorDiff, ratio

_VALUES = 1 << 21  # values of each side measured at once, 16 MB in fp64


def measure(a: StoredTensor, b: StoredTensor, spectrum: bool = True) -> TensorDiff:
    """Measure two tensors of one shape in fp64, block by block; the result is named as `a` is.

    Without `spectrum`, the rank and what belongs to it are left out, as for a vector.

    Memory: some 60 MB, whatever the tensors' size, and the Gram matrix of the change, (n, n) in fp64, with n the
    smaller of the number of changed rows and the number of columns. Only rows that changed enter it. A change to or
    from a value that is not finite counts as infinite; one that is in both counts as none.

    Raises:
        InputError: a dtype chip cannot read; a file that has become shorter.
    """
    with a.open() as file_a, b.open() as file_b:
        A, B = _Matrix(file_a, a), _Matrix(file_b, b)
        measured, rows = _measure_values(A, B)
        if spectrum and len(a.entry.shape) > 1 and sys.float_info.min < measured.change**2 < math.inf:
            gram = _gram(A, B, rows)
            measured = measured if gram is None else _with_spectrum(measured, gram)
    return measured


def frobenius_norm(stored: StoredTensor) -> float:
    """‖a‖ of a stored tensor over its finite values, in fp64, block by block.

    Raises:
        InputError: as `measure` does.
    """
    with stored.open() as file:
        A = _Matrix(file, stored)
        blocks = (A.part(*block) for block in _blocks(A.rows, A.columns))
        return math.sqrt(sum(_square(block.nan_to_num_(0.0, 0.0, 0.0)) for block in blocks))


class _Matrix:
    """A stored tensor as a matrix, its first dimension by all others, of which parts are read."""

    def __init__(self, file: Source, stored: StoredTensor) -> None:
        shape = stored.entry.shape
        self.rows = shape[0] if shape else 1
        self.columns = math.prod(shape[1:])
        self.stored = stored
        self._file = file
        self._dtype = stored.entry.torch_dtype

    def part(self, rows: Sequence[int], begin: int, end: int) -> Tensor:
        """Columns `begin` to `end` of `rows`, which ascend: (len(rows), end − begin), fp64."""
        values = torch.empty(len(rows), end - begin, dtype=self._dtype)
        raw = values.view(torch.uint8).numpy()
        if end - begin == self.columns and rows[-1] - rows[0] == len(rows) - 1:
            self._read(raw.reshape(-1).data, rows[0] * self.columns)
        else:
            for row, target in zip(rows, raw, strict=True):
                self._read(target.data, row * self.columns + begin)
        return values.double()

    def _read(self, target: memoryview, value: int) -> None:
        self._file.seek(self.stored.entry.begin + value * self._dtype.itemsize)
        self.stored.read_into(target, self._file)


def _difference(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """new − old, which takes the place of `new`, and where they are the same."""
    same = (old == new) | (old.isnan() & new.isnan())
    delta = new.sub_(old).nan_to_num_(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    return delta.masked_fill_(same, 0.0), same


def _measure_values(A: _Matrix, B: _Matrix) -> tuple[TensorDiff, list[int]]:
    """All but the spectrum, and the rows that changed."""
    square_a = square = largest = 0.0
    changed = torch.zeros(A.rows, dtype=torch.bool)
    for rows, begin, end in _blocks(A.rows, A.columns):
        old = A.part(rows, begin, end)
        delta, same = _difference(old, B.part(rows, begin, end))
        changed[rows[0] : rows[-1] + 1] |= ~same.all(dim=1)
        low, high = delta.aminmax()
        largest = max(largest, -low.item(), high.item())
        square += _square(delta)
        square_a += _square(old.nan_to_num_(0.0, 0.0, 0.0))
    a, b = A.stored.entry, B.stored.entry
    measured = TensorDiff(
        a.name,
        a.shape,
        a.dtype if a.dtype == b.dtype else f"{a.dtype} -> {b.dtype}",
        changed=True,
        relative_change=ratio(math.sqrt(square), math.sqrt(square_a)),
        largest_change=largest,
        rows_changed=changed.sum().item() / max(1, A.rows),
        norm=math.sqrt(square_a),
        change=math.sqrt(square),
    )
    return measured, changed.nonzero().flatten().tolist()


def _square(values: Tensor) -> float:
    flat = values.reshape(-1)
    return torch.dot(flat, flat).item()


def _blocks(rows: int, columns: int) -> Iterator[tuple[range, int, int]]:
    """Cover a matrix with blocks of some rows and all columns, or, where a row is too long, of a part of one row."""
    if not columns:
        return
    height, width = max(1, _VALUES // columns), min(columns, _VALUES)
    for first in range(0, rows, height):
        for begin in range(0, columns, width):
            yield range(first, min(rows, first + height)), begin, min(columns, begin + width)


def _gram(A: _Matrix, B: _Matrix, rows: Sequence[int]) -> Tensor | None:
    """DᵀD or DDᵀ, the smaller, of the changed rows D of B − A: (n, n), fp64, lower triangle. None where n is too large.

    Both have the squares of the singular values of B − A that are not zero. `dsyrk` takes half the work of a product.
    """
    tall = len(rows) >= A.columns
    n = A.columns if tall else len(rows)
    if n > LARGEST_GRAM:
        return None
    step = max(1, _VALUES // n)
    if tall:  # blocks of rows
        parts = ((rows[i : i + step], 0, A.columns) for i in range(0, len(rows), step))
    else:  # all changed rows, a segment of columns at a time
        parts = ((rows, i, min(A.columns, i + step)) for i in range(0, A.columns, step))
    total = np.zeros((n, n), order="F")
    for part_rows, begin, end in parts:
        delta, _ = _difference(A.part(part_rows, begin, end), B.part(part_rows, begin, end))
        total = dsyrk(1.0, delta.numpy().T, beta=1.0, c=total, trans=not tall, overwrite_c=True)
    return torch.from_numpy(total.T)  # dsyrk fills the upper triangle by columns: the lower one by rows


def _with_spectrum(measured: TensorDiff, gram: Tensor) -> TensorDiff:
    """`measured` with the effective rank exp(−Σ pᵢ ln pᵢ), pᵢ = σᵢ / Σσ, and the leading singular values σ.

    The definition is that of Roy and Vetterli, "The effective rank: a measure of effective dimensionality"
    (2007). Squaring costs half of the digits, which leaves as many as a singular value decomposition in
    float32 gives, and is several times faster on the matrices of a language model. What rounding hides
    counts as zero.
    """
    squares = torch.linalg.eigvalsh(gram).flip(0)
    squares = squares[squares > squares[0] * len(gram) * torch.finfo(torch.float64).eps]
    sigma = squares.sqrt()
    p = sigma / sigma.sum()
    return replace(
        measured,
        effective_rank=float(torch.exp(torch.special.entr(p).sum())),
        energy=tuple((k, min(1.0, float(squares[:k].sum() / squares.sum()))) for k in DIRECTIONS),
        spectrum=tuple(sigma[: DIRECTIONS[-1]].tolist()),
    )
