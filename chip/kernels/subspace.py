"""Orthonormal bases of a few directions, and projections onto what is orthogonal to them."""

from __future__ import annotations

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-7
"""Singular values below this share of the largest are zero: fp64 Gram matrices resolve no finer."""


def leading_basis(directions: Tensor, energy: float) -> Tensor:
    """The fewest leading right singular vectors that hold a share `energy` of the squared singular values.

    From the eigenvectors of the Gram matrix on the smaller side, in the dtype of `directions`.

    Args:
        directions: (m, d), fp64 (fp32 where the device has no fp64).
        energy: in (0, 1]; 1 keeps the whole row space.

    Returns:
        Q: (d, r), orthonormal columns, r ≥ 1 unless all directions are zero (then r = 0).
    """
    rows, columns = directions.shape
    gram = directions @ directions.T if rows <= columns else directions.T @ directions
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    values = values[values > values[:1] * RANK_TOLERANCE**2]
    if values.numel() == 0 or values[0] == 0:
        return directions.new_zeros(columns, 0)
    held = torch.cumsum(values, 0) / values.sum()
    rank = int((held < energy * (1 - 1e-12)).sum()) + 1
    leading: Tensor = vectors[:, : min(rank, values.numel())]
    return torch.linalg.qr(directions.T @ leading).Q if rows <= columns else leading


def project_out(weight: Tensor, basis: Tensor) -> Tensor:
    """(I − Q Qᵀ) W, by two thin products, never a dense projector.

    Args:
        weight: (rows, d), fp32 or fp64.
        basis: Q (rows, r), orthonormal columns.
    """
    basis = basis.to(weight.dtype)
    return weight - basis @ (basis.T @ weight)
