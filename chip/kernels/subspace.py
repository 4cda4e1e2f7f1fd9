"""Orthonormal bases of a few directions, and projections onto what is orthogonal to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS, BLOCK = 256, 1 << 17
"""Of a projection on a CPU: rows at a time, where there are more than twice as many, and values."""


def leading_bases(directions: Tensor, variance_threshold: float) -> list[Tensor]:
    """For each matrix of a batch the fewest leading right singular vectors that explain `variance_threshold` of it.

    That is their share of the squared singular values. They come from the eigenvectors U of the Gram matrix on the
    smaller side, in the dtype of `directions`. Where these are on the left, the columns of Dᵀ U are orthogonal but for
    rounding, which weighs the more the shorter they are; if the shortest selected one is short, a Cholesky factor of
    their own Gram matrix makes them so (Cholesky QR: Golub and Van Loan, Matrix Computations, 4th edition, section
    5.2).

    Args:
        directions: D (b, m, d), fp64 (fp32 where the device has no fp64).
        variance_threshold: in (0, 1]; 1 selects the whole row space. Singular values that a Gram matrix cannot tell
            from zero, below 1e-6 of the largest in fp64 (2e-3 in fp32), count as zero.

    Returns:
        b matrices Q (d, r), orthonormal columns, r ≥ 1 unless all directions are zero (then r = 0).

    Raises:
        torch.linalg.LinAlgError: the eigenvalues do not converge, as where a direction is not finite.
    """
    _, count, width = directions.shape
    transposed = directions.mT
    gram = directions @ transposed if count <= width else transposed @ directions
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(1).clamp(min=0), vectors.flip(2)  # squared singular values, descending
    selected = _leading(values, variance_threshold)  # (b, smaller side)
    ranks = selected.sum(1).tolist()
    if count <= width:
        most = slice(max(ranks, default=0))
        vectors = _to_right(transposed, vectors[:, :, most], values[:, most], selected[:, most])
    return [basis[:, :rank] for basis, rank in zip(vectors, ranks, strict=True)]


def leading_basis(directions: Tensor, variance_threshold: float) -> Tensor:
    """`leading_bases` of one matrix: directions (m, d) to Q (d, r)."""
    (basis,) = leading_bases(directions[None], variance_threshold)
    return basis


def _leading(values: Tensor, variance_threshold: float) -> Tensor:
    """(b, n) bool: which of the squared singular values (b, n), in descending order, are selected."""
    values = values * (values > values[:, :1] * 50 * torch.finfo(values.dtype).eps)
    before = values.cumsum(1) - values
    return (values > 0) & (before < variance_threshold * (1 - 1e-12) * values.sum(1, keepdim=True))


def _to_right(transposed: Tensor, vectors: Tensor, values: Tensor, selected: Tensor) -> Tensor:
    """(b, d, r): the right singular vectors Dᵀ U, orthonormal columns where they are selected, zero elsewhere."""
    eps = torch.finfo(values.dtype).eps
    columns = transposed @ (vectors * torch.where(selected, values.rsqrt(), 0)[:, None])
    short = values < eps**0.25 * values[:, :1]
    if bool((selected & short).any()):  # else their products are off by eps ** 0.75 at most
        gram = columns.mT @ columns + torch.diag_embed((~selected).to(values.dtype))
        factor = torch.linalg.cholesky(gram).mT
        columns = torch.linalg.solve_triangular(factor, columns, upper=True, left=False)
    return columns


def project_out(weight: Tensor, basis: Tensor) -> Tensor:
    """(I − Q Qᵀ) W, by two thin products, never a dense projector.

    Args:
        weight: (rows, d), fp32 or fp64.
        basis: Q (rows, r), orthonormal columns.
    """
    basis = basis.to(weight.dtype)
    return weight - basis @ (basis.T @ weight)


@torch.no_grad()
def project_rows_(weight: Tensor, rows: Tensor, basis: Tensor) -> None:
    """W_S ← (I − Q Qᵀ) W_S in place; all other rows keep their bits.

    Two thin products, never a dense projector; in fp32 (fp64 for fp64 weights), each value rounded once. Blocks of rows
    and columns are gathered, converted, multiplied and put back while they are in the cache. Many rows are gone through
    twice, for Qᵀ W_S and then to take it out; few enough to be one block, once.

    Args:
        weight: W (d_out, d_in), or a vector (d_out,); of any strides.
        rows: S (r,) int64, none twice.
        basis: Q (r, k), orthonormal columns, of any float dtype.

    Raises:
        IndexError: a row that the weight lacks.
    """
    matrix = weight.detach().view(len(weight), weight[0].numel())
    basis = basis.to(torch.promote_types(weight.dtype, torch.float32))
    height, width = _block_shape(matrix, len(rows))
    whole = matrix.shape[1] // width * width
    for part, columns in ((matrix[:, :whole], width), (matrix[:, whole:], matrix.shape[1] - whole)):
        if part.numel() and len(rows):
            _project_(part, rows, basis, height, columns)


def _project_(matrix: Tensor, rows: Tensor, basis: Tensor, height: int, width: int) -> None:
    """`project_rows_` of panels of `width` columns each, `height` rows at a time."""
    words = _as_words(matrix, width)
    stored = matrix.new_empty(min(height, len(rows)), width)
    x = stored if stored.dtype == basis.dtype else torch.empty_like(stored, dtype=basis.dtype)
    total = x.new_empty(basis.shape[1], width)  # Qᵀ W_S
    blocks = [
        _Block(indices, q, stored[: len(q)], stored[: len(q)].view(words.dtype), x[: len(q)])
        for indices, q in zip(torch.split(rows, height), torch.split(basis, height), strict=True)
    ]
    for panel in torch.split(words, width * words.shape[1] // matrix.shape[1], 1):
        for number, block in enumerate(blocks):
            block.load(panel)
            total.addmm_(block.basis.T, block.x, beta=min(number, 1))
        for number, block in enumerate(reversed(blocks)):
            if number:  # the last one is still there
                block.load(panel)
            block.x.addmm_(block.basis, total, alpha=-1)
            block.store(panel)


@dataclass(frozen=True)
class _Block:
    """Some rows of a panel, through buffers that all blocks have in common."""

    rows: Tensor
    basis: Tensor
    """(rows, k)"""
    stored: Tensor
    """(rows, width), in the dtype of the weight."""
    words: Tensor
    """The same memory as rows are moved in."""
    x: Tensor
    """(rows, width), in the dtype of the products; `stored` where that is the same."""

    def load(self, panel: Tensor) -> None:
        torch.index_select(panel, 0, self.rows, out=self.words)
        if self.x.dtype != self.stored.dtype:
            self.x.copy_(self.stored)

    def store(self, panel: Tensor) -> None:
        if self.x.dtype != self.stored.dtype:
            self.stored.copy_(self.x)
        panel.index_copy_(0, self.rows, self.words)


def _block_shape(matrix: Tensor, height: int) -> tuple[int, int]:
    """Rows and columns at a time, of `height` rows: on a CPU what the cache of a core holds beside the buffers, with
    columns for every thread; elsewhere enough that starting the work costs nothing."""
    if matrix.device.type != "cpu":
        return max(1, height), max(1, (1 << 25) // max(1, height))
    height = ROWS if height > 2 * ROWS else max(1, height)
    return height, max(1, torch.get_num_threads() * BLOCK // height // 8 * 8)


def _as_words(matrix: Tensor, width: int) -> Tensor:
    """The same memory in elements of 16 bytes, where rows of `width` values can be had so: a CPU moves rows element by
    element."""
    values = 16 // matrix.itemsize
    places = (matrix.data_ptr() // matrix.itemsize, matrix.storage_offset(), matrix.stride(0), width)
    if matrix.device.type != "cpu" or matrix.stride(1) != 1 or any(place % values for place in places):
        return matrix
    return matrix.view(torch.complex128)
