"""Orthonormal bases of a few directions, and projections onto what is orthogonal to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def leading_bases(directions: Tensor, energy: float) -> list[Tensor]:
    """The fewest leading right singular vectors that hold a share `energy` of the squared singular values, by site.

    From the eigenvectors U of the Gram matrix on the smaller side, in the dtype of `directions`. Where these are on the
    left, the columns of Dᵀ U are orthogonal but for rounding, which weighs the more the shorter they are; if the
    shortest kept is short, a Cholesky factor of their own Gram matrix makes them so (Cholesky QR: Golub and Van Loan,
    Matrix Computations, 4th edition, section 5.2).

    Args:
        directions: D (sites, m, d), fp64 (fp32 where the device has no fp64).
        energy: in (0, 1]; 1 keeps the whole row space. Singular values that a Gram matrix cannot tell from zero, below
            1e-6 of the largest in fp64 (2e-3 in fp32), count as zero.

    Returns:
        One Q (d, r) a site, orthonormal columns, r ≥ 1 unless all its directions are zero (then r = 0).
    """
    _, count, width = directions.shape
    transposed = directions.mT
    gram = directions @ transposed if count <= width else transposed @ directions
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(1).clamp(min=0), vectors.flip(2)  # squared singular values, descending
    kept = _leading(values, energy)  # (sites, smaller side)
    ranks = kept.sum(1).tolist()
    if count <= width:
        most = slice(max(ranks, default=0))
        vectors = _carried(transposed, vectors[:, :, most], values[:, most], kept[:, most])
    return [basis[:, :rank] for basis, rank in zip(vectors, ranks, strict=True)]


def leading_basis(directions: Tensor, energy: float) -> Tensor:
    """`leading_bases` of one site: directions (m, d), Q (d, r)."""
    (basis,) = leading_bases(directions[None], energy)
    return basis


def _leading(values: Tensor, energy: float) -> Tensor:
    """(sites, n) bool: which of the squared singular values, in descending order, are kept."""
    values = values * (values > values[:, :1] * 50 * torch.finfo(values.dtype).eps)
    before = values.cumsum(1) - values
    return (values > 0) & (before < energy * (1 - 1e-12) * values.sum(1, keepdim=True))


def _carried(transposed: Tensor, vectors: Tensor, values: Tensor, kept: Tensor) -> Tensor:
    """(sites, d, r): Dᵀ U, orthonormal columns where they are kept, zero elsewhere."""
    eps = torch.finfo(values.dtype).eps
    columns = transposed @ (vectors * torch.where(kept, values.rsqrt(), 0)[:, None])
    if bool((kept & (values < eps**0.25 * values[:, :1])).any()):  # else their products are off by eps ** 0.75 at most
        gram = columns.mT @ columns + torch.diag_embed((~kept).to(values.dtype))
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
    """W_S ← (I − Q Qᵀ) W_S for many sites of one shape, in place; all other rows keep their bits.

    Two thin products, never a dense projector; in fp32 (fp64 for fp64 weights), each value rounded once. As many sites
    at a time as make a block, or as many columns of one: the buffers are small, are used again and stay in the cache.

    Args:
        weights: s matrices (d_out, d_in), or vectors (d_out,), of one shape, dtype and device.
        rows: S (s, r) int64, the rows of each site, none twice.
        bases: s matrices Q (r, k), orthonormal columns, whose ranks k may differ; or one tensor (s, r, k).
    """
    if not weights:
        return
    first = weights[0]
    width, chosen = first[0].numel(), rows.shape[1]
    dtype = torch.promote_types(first.dtype, torch.float32)
    padded = torch.nn.utils.rnn.pad_sequence([basis.T for basis in bases], batch_first=True).mT.to(dtype)  # (s, r, k)
    block = _block(first)
    target_modules = min(len(weights), max(1, block // max(1, chosen * width)))
    columns = min(width, max(1, block // max(1, chosen * target_modules)))
    wide = first.new_empty(target_modules * chosen * columns, dtype=dtype)
    narrow = wide if first.dtype == dtype else torch.empty_like(wide, dtype=first.dtype)
    for module in range(0, len(weights), target_modules):
        group = slice(module, module + target_modules)
        matrices = [weight.view(len(weight), width) for weight in weights[group]]
        for start in range(0, width, columns):
            parts = [matrix[:, start : start + columns] for matrix in matrices]
            _project(parts, rows[group], padded[group], wide, narrow)


def _project(parts: list[Tensor], rows: Tensor, bases: Tensor, wide: Tensor, narrow: Tensor) -> None:
    """`project_rows_` of one block, through two buffers: `narrow` in the weights' dtype, `wide` for the products."""
    shape = (len(parts), rows.shape[1], parts[0].shape[1])
    size = shape[0] * shape[1] * shape[2]
    stored, x = narrow[:size].view(shape), wide[:size].view(shape)
    for part, chosen, place in zip(parts, rows, stored, strict=True):
        torch.index_select(part, 0, chosen, out=place)
    if narrow is not wide:
        x.copy_(stored)
    x.baddbmm_(bases, bases.mT @ x, alpha=-1)
    if narrow is not wide:
        stored.copy_(x)
    for part, chosen, place in zip(parts, rows, stored, strict=True):
        part.index_copy_(0, chosen, place)


def _block(weight: Tensor) -> int:
    """Values at a time: on a CPU what its cache holds, elsewhere enough that starting the work costs nothing."""
    return 1 << 20 if weight.device.type == "cpu" else 1 << 25
