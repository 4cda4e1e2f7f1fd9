"""Orthonormal bases of a few directions, and projections onto what is orthogonal to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
def project_rows_(weights: Sequence[Tensor], rows: Tensor, bases: Sequence[Tensor]) -> None:
    """W_S ← (I − Q Qᵀ) W_S for many weights of one shape, in place; all other rows keep their bits.

    Two thin products, never a dense projector; in fp32 (fp64 for fp64 weights), each value rounded once. As many
    weights at a time as make a block, or as many columns of one: the buffers are small, are used again and stay in the
    cache.

    Args:
        weights: b matrices (d_out, d_in), or vectors (d_out,), of one shape, dtype and device.
        rows: S (b, r) int64, the rows of each weight, none twice.
        bases: b matrices Q (r, k), orthonormal columns, whose ranks k may differ; or one tensor (b, r, k).

    Raises:
        IndexError: a row that a weight lacks.
    """
    if not weights:
        return
    first, height = weights[0], rows.shape[1]
    width = first[0].numel()
    dtype = torch.promote_types(first.dtype, torch.float32)
    padded = torch.nn.utils.rnn.pad_sequence([basis.T for basis in bases], batch_first=True).mT.to(dtype)  # (b, r, k)
    block = _block_size(first)
    batch = min(len(weights), max(1, block // max(1, height * width)))
    columns = min(width, max(1, block // max(1, height * batch)))
    wide = first.new_empty(batch * height * columns, dtype=dtype)
    narrow = wide if first.dtype == dtype else torch.empty_like(wide, dtype=first.dtype)
    for begin in range(0, len(weights), batch):
        part = slice(begin, begin + batch)
        matrices = [weight.view(len(weight), width) for weight in weights[part]]
        for start in range(0, width, columns):
            panels = [matrix[:, start : start + columns] for matrix in matrices]
            _project_(panels, rows[part], padded[part], wide, narrow)


def _project_(panels: list[Tensor], rows: Tensor, bases: Tensor, wide: Tensor, narrow: Tensor) -> None:
    """`project_rows_` of one block, through two buffers: `narrow` in the weights' dtype, `wide` for the products."""
    shape = (len(panels), rows.shape[1], panels[0].shape[1])
    numel = shape[0] * shape[1] * shape[2]
    stored, x = narrow[:numel].view(shape), wide[:numel].view(shape)
    for panel, indices, buffer in zip(panels, rows, stored, strict=True):
        torch.index_select(panel, 0, indices, out=buffer)
    if narrow is not wide:
        x.copy_(stored)
    x.baddbmm_(bases, bases.mT @ x, alpha=-1)
    if narrow is not wide:
        stored.copy_(x)
    for panel, indices, buffer in zip(panels, rows, stored, strict=True):
        panel.index_copy_(0, indices, buffer)


def _block_size(weight: Tensor) -> int:
    """Values at a time: on a CPU what its cache holds, elsewhere enough that starting the work costs nothing."""
    return 1 << 20 if weight.device.type == "cpu" else 1 << 25
