"""Solves with a symmetric positive definite matrix."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 512
"""Columns that are factored at a time: wide enough for products at full speed; the temporary is BLOCK × d."""


def solve_spd_(right: Tensor, matrix: Tensor) -> Tensor:
    """X with X @ matrix = right, by a blocked Cholesky factorization in place, in the dtype of `matrix`.

    The upper triangle of `matrix`, with the diagonal, is read and left as it was; the lower one is not read, and is
    overwritten. So the factor L (L Lᵀ = matrix) has room beside the matrix itself, with which the residual of the
    solution is checked. The factorization is the left-looking one: Golub and Van Loan, Matrix Computations, 4th
    edition, section 4.2.

    Args:
        right: (m, d), any float dtype, on the device of `matrix`.
        matrix: (d, d), fp64 or fp32, symmetric positive definite.

    Returns:
        (m, d), in the dtype of `matrix`.

    Raises:
        torch.linalg.LinAlgError: the matrix is not positive definite, or the residual of the solution exceeds 1e-6 of
            `right` (relative, Frobenius; 1e-3 in fp32).
    """
    solution = solve_spd_unchecked_(right, matrix)
    check_solution(solution, matrix, right)
    return solution


def solve_spd_unchecked_(right: Tensor, matrix: Tensor) -> Tensor:
    """`solve_spd_` without a look at the residual, for what is only on the way to a solution."""
    right, diagonal = right.to(matrix.dtype), matrix.diagonal().clone()
    _factor_(matrix)
    solution = _substitute_(right.clone(), matrix)
    matrix.diagonal().copy_(diagonal)
    return solution


def check_solution(solution: Tensor, matrix: Tensor, right: Tensor) -> None:
    """Raise `torch.linalg.LinAlgError` where the residual is too large; arguments as `solve_spd_` has them."""
    residual = _residual(solution, matrix, right.to(matrix.dtype))
    if not residual <= (1e-6 if matrix.dtype == torch.float64 else 1e-3):
        raise torch.linalg.LinAlgError(f"relative residual {residual:.1e}")  # type: ignore[attr-defined]


def raise_eigenvalues(matrix: Tensor, least: float) -> Tensor:
    """The matrix with its eigenvalues below `least` at `least`: the nearest one that has none below (Higham 1988,
    Computing a Nearest Symmetric Positive Semidefinite Matrix).

    Args:
        matrix: (d, d), symmetric; what stands below the diagonal is not read.
    """
    values, vectors = torch.linalg.eigh(matrix, UPLO="U")
    raised: Tensor = (vectors * values.clamp(min=least)) @ vectors.T
    return raised


def _blocks(width: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, width)) for start in range(0, width, BLOCK)]


def _factor_(matrix: Tensor) -> None:
    """matrix ← L on and below the diagonal, from what is on and above it."""
    for block in _blocks(len(matrix)):
        before, width = slice(block.start), block.stop - block.start
        columns = matrix[block, block.start :].T.contiguous()  # (d − start, width)
        columns.addmm_(matrix[block.start :, before], matrix[block, before].T, alpha=-1)
        corner, below = columns[:width], columns[width:]
        corner = torch.linalg.cholesky(corner)  # reads what is on and below the diagonal, as it must
        torch.linalg.solve_triangular(corner.T, below, upper=True, left=False, out=below)
        matrix[block, block].triu_(1).add_(corner)
        matrix[block.stop :, block] = below


def _substitute_(right: Tensor, matrix: Tensor) -> Tensor:
    """right ← right L⁻ᵀ L⁻¹, with the L of `_factor_`."""
    blocks = _blocks(len(matrix))
    for block in blocks:
        before, corner = slice(block.start), matrix[block, block].T
        rest = torch.addmm(right[:, block], right[:, before], matrix[block, before].T, alpha=-1)
        right[:, block] = torch.linalg.solve_triangular(corner, rest, upper=True, left=False, out=rest)
    for block in reversed(blocks):
        after, corner = slice(block.stop, None), matrix[block, block]
        rest = torch.addmm(right[:, block], right[:, after], matrix[after, block], alpha=-1)
        right[:, block] = torch.linalg.solve_triangular(corner, rest, upper=False, left=False, out=rest)
    return right


def _residual(solution: Tensor, matrix: Tensor, right: Tensor) -> float:
    """‖X K − B‖ / ‖B‖ (Frobenius), from what is on and above the diagonal of K."""
    squares = matrix.new_zeros(())
    for block in _blocks(len(matrix)):
        before, after, corner = slice(block.start), slice(block.stop, None), matrix[block, block]
        error = solution[:, block] @ (corner.triu() + corner.triu(1).T) - right[:, block]
        error.addmm_(solution[:, before], matrix[before, block]).addmm_(solution[:, after], matrix[block, after].T)
        squares += error.square().sum()
    return float(squares.sqrt() / torch.linalg.norm(right).clamp(min=1e-30))
