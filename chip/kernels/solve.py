"""Solves with a symmetric positive definite matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def solve_spd(right: Tensor, matrix: Tensor) -> Tensor:
    """X with X @ matrix = right, by Cholesky in the dtype of `matrix`.

    Args:
        right: (m, d).
        matrix: (d, d), symmetric positive definite.

    Raises:
        torch.linalg.LinAlgError: the matrix is not positive definite, or the residual of the solution exceeds 1e-6 of
            `right` (relative, Frobenius; 1e-3 in fp32).
    """
    factor = torch.linalg.cholesky(matrix)
    solution = torch.cholesky_solve(right.to(matrix.dtype).T, factor).T
    residual = torch.linalg.norm(solution @ matrix - right) / torch.linalg.norm(right).clamp(min=1e-30)
    if not residual <= (1e-6 if matrix.dtype == torch.float64 else 1e-3):
        raise torch.linalg.LinAlgError(f"relative residual {residual.item():.1e}")  # type: ignore[attr-defined]
    return solution
