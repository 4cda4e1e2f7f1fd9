"""The few directions of a matrix that matter most, in a metric of one's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chip.kernels.solve import solve_spd_unchecked_
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


def leading_factor(matrix: Callable[[Tensor], Tensor], rank: int, metric: SymmetricSum) -> Tensor:
    """F (r, d) such that Fᵀ F is near that matrix of rank r which is nearest to A (d, d) in the metric of K⁻¹.

    For positive semidefinite A: those parts of it that are largest beside K. With A v = μ K v and vᵀ K v = 1 the rows
    are √μ vᵀ K, by subspace iteration with a Rayleigh-Ritz step (Halko, Martinsson and Tropp, SIAM Review 53, 2011;
    for pairs, Saad, Numerical Methods for Large Eigenvalue Problems, 2011, section 9.2). A is only multiplied with.
    Exact where r + 8 ≥ d. It begins with the same directions each time.

    Args:
        matrix: X (n, d) -> X A.
        rank: r ≥ 1; fewer rows come where A has fewer directions.
        metric: K (d, d), fp64 or fp32, symmetric positive definite.

    Raises:
        torch.linalg.LinAlgError: the eigenvalues do not converge, or K is not positive definite.
    """
    width = metric.like.width
    count = min(rank + _OVERSAMPLING, width)
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = _orthonormal(drawn.to(metric.like.panels[0]), metric)
    for _ in range(_ITERATIONS if count < width else 0):
        basis = _orthonormal(solve_spd_unchecked_(matrix(basis), metric), metric)
    within = matrix(basis) @ basis.T
    values, vectors = torch.linalg.eigh((within + within.T) / 2)
    values, vectors = values[-rank:], vectors[:, -rank:]
    there = values > _negligible(values) * width
    factor: Tensor = metric.product(vectors[:, there].T @ basis) * values[there].sqrt()[:, None]
    return factor


def _orthonormal(rows: Tensor, metric: SymmetricSum) -> Tensor:
    """Rows Z of the same span with Z K Zᵀ = I; fewer where some depend on the others."""
    gram = metric.product(rows) @ rows.T
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    there = values > _negligible(values) * len(values)
    orthonormal: Tensor = (vectors[:, there] / values[there].sqrt()).T @ rows
    return orthonormal


def _negligible(values: Tensor) -> Tensor:
    """What beside the largest of the values (n,), 0 or more, is rounding."""
    largest: Tensor = values.max() if len(values) else values.new_zeros(())
    return largest.clamp(min=0) * torch.finfo(values.dtype).eps
