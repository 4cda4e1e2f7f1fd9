"""The few directions of a matrix that matter most, in a metric of one's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chip.kernels.symmetric import SymmetricSum


def leading_outputs(change: Tensor, rank: int, metric: SymmetricSum | None = None) -> Tensor:
    """Orthonormal U (m, r) such that U Uᵀ D is the matrix of rank r that is nearest to D, by tr((X − D) A (X − D)ᵀ).

    With A = L Lᵀ the nearest one is the singular value decomposition of D L, cut at r, times L⁻¹ (Eckart and Young in
    the metric A). Its left singular vectors are the eigenvectors of D A Dᵀ, so that no root of A is needed where D is
    wide; where it is tall, its right ones are those of Lᵀ Dᵀ D L, and U spans D L V.

    Args:
        change: D (m, n), fp64 or fp32.
        rank: r ≥ 1; less where D has no more rows or columns.
        metric: A (n, n), in the dtype of D, symmetric positive definite. None: the identity.

    Raises:
        torch.linalg.LinAlgError: the eigenvalues do not converge, or A is not positive definite.
    """
    if change.shape[0] <= change.shape[1]:
        weighed = change if metric is None else metric.product(change)
        return _leading_vectors(weighed @ change.T, rank)
    root = change if metric is None else change @ torch.linalg.cholesky(metric.dense())
    outputs: Tensor = torch.linalg.qr(root @ _leading_vectors(root.T @ root, rank)).Q
    return outputs


def _leading_vectors(symmetric: Tensor, count: int) -> Tensor:
    """Eigenvectors (n, count) of the largest eigenvalues, these first; all n where count is more."""
    count = min(count, len(symmetric))  # torch warns of a slice beyond 64 bits
    vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors[:, -count:].flip(1)
    return vectors


def low_rank_factors(change: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """B (m, r) and A (r, n) with B A = D but for singular values of D up to `tolerance`; r = 0 where all are.

    The eigenvectors of the smaller Gram matrix are one factor, orthonormal, and the product of D with them the other:
    an exact projection, whatever the eigenvalues' digits. Singular values below 1e-8 of the largest count as zero too:
    squared, they are lost in fp64.

    Args:
        change: D (m, n), fp64.

    Raises:
        torch.linalg.LinAlgError: the eigenvalues do not converge.
    """
    wide = change.shape[0] <= change.shape[1]
    gram = change @ change.T if wide else change.T @ change
    squares, vectors = torch.linalg.eigh(gram)
    leading = vectors[:, squares.clamp(min=0).sqrt() > tolerance].flip(1)
    return (leading, leading.T @ change) if wide else (change @ leading, leading.T)


_OVERSAMPLING = 8  # directions beyond those that are asked for
_ITERATIONS = 6


def leading_factor(product: Callable[[Tensor], Tensor], like: Tensor, rank: int) -> Tensor:
    """F (r, d) such that Fᵀ F is near the best approximation of rank r of a symmetric positive semidefinite A (d, d).

    By subspace iteration with a Rayleigh-Ritz step (Halko, Martinsson and Tropp, SIAM Review 53, 2011): A is only
    multiplied with. Exact where r + 8 ≥ d. The rows are orthogonal, the longest last. Always the same directions begin.

    Args:
        product: X (n, d) -> X A.
        like: (d,), for width, dtype (fp64 or fp32) and device.
        rank: r ≥ 1; less come where A has fewer directions.

    Raises:
        torch.linalg.LinAlgError: the eigenvalues do not converge.
    """
    width = len(like)
    count = min(rank + _OVERSAMPLING, width)
    drawn = torch.randn(width, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(drawn.to(like)).Q
    for _ in range(_ITERATIONS if count < width else 0):
        basis = torch.linalg.qr(product(basis.T).T).Q
    within = product(basis.T) @ basis
    values, vectors = torch.linalg.eigh((within + within.T) / 2)
    values, vectors = values[-rank:], vectors[:, -rank:]
    there = values > torch.finfo(like.dtype).eps * width * values[-1].clamp(min=0)
    return values[there].sqrt()[:, None] * (basis @ vectors[:, there]).T
