"""Solves with a symmetric positive definite matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from chip.kernels.symmetric import SymmetricMatrix, SymmetricSum

CHECKED = 64
"""Equations whose residual is looked at: so many random sums of all."""


def solve_spd_(right: Tensor, system: SymmetricSum) -> Tensor:
    """`right` ← X with X @ system = right, by a blocked Cholesky factorization; returns `right`.

    The factor is all that is made, half a matrix: the system is only read, panel by panel, and once more for the
    residual. The factorization is the left-looking one: Golub and Van Loan, Matrix Computations, 4th edition,
    section 4.2.

    Args:
        right: (m, d), in the dtype of the system and on its device.
        system: (d, d), fp64 or fp32, symmetric positive definite.

    Raises:
        torch.linalg.LinAlgError: the matrix is not positive definite, or the residual of the solution exceeds 1e-6 of
            `right` (relative, Frobenius; 1e-3 in fp32; see `Check`).
    """
    check = Check(right)
    solve_spd_unchecked_(right, system)
    check.solution(right, system)
    return right


def solve_spd_unchecked_(right: Tensor, system: SymmetricSum) -> Tensor:
    """`solve_spd_` without a look at the residual, for what is only on the way to a solution."""
    return _substitute_(right, _factor(system))


class Check:
    """Of the equations X K = B, (m, d), their residual: ‖S (X K − B)‖ / ‖S B‖ (Frobenius).

    S (k, m) are k random sums, each of all equations with random signs: E‖S R‖² = k ‖R‖², and what is wrong in one
    equation alone weighs in full. They cost k / m of what the whole residual does, and no second B. S is the identity
    where there are no more than k equations.
    """

    def __init__(self, right: Tensor) -> None:
        """`right`: B, which may be overwritten afterwards."""
        signs = torch.randint(0, 2, (CHECKED, len(right)), generator=torch.Generator().manual_seed(0)) * 2 - 1
        self._signs = signs.to(right) if len(right) > CHECKED else None
        self._right = self._sums(right)

    def _sums(self, equations: Tensor) -> Tensor:
        return equations.clone() if self._signs is None else self._signs @ equations

    def residual(self, solution: Tensor, system: SymmetricSum) -> float:
        """Relative to B."""
        error = system.product(self._sums(solution)).sub_(self._right)
        return float(torch.linalg.norm(error) / torch.linalg.norm(self._right).clamp(min=1e-30))

    def solution(self, solution: Tensor, system: SymmetricSum) -> None:
        """Raise `torch.linalg.LinAlgError` where the residual is too large: above 1e-6, in fp32 1e-3."""
        residual = self.residual(solution, system)
        if not residual <= (1e-6 if solution.dtype == torch.float64 else 1e-3):
            raise torch.linalg.LinAlgError(f"relative residual {residual:.1e}")  # type: ignore[attr-defined]


def raise_eigenvalues(matrix: SymmetricSum, least: float) -> SymmetricSum:
    """The matrix with its eigenvalues below `least` at `least`: the nearest one that has none below (Higham 1988,
    Computing a Nearest Symmetric Positive Semidefinite Matrix). It stands in memory as a whole meanwhile."""
    values, vectors = torch.linalg.eigh(matrix.dense())
    return SymmetricSum.of((vectors * values.clamp(min=least)) @ vectors.T)


def _factor(system: SymmetricSum) -> SymmetricMatrix:
    """U with Uᵀ U = system, upper triangular, in the place of a symmetric matrix."""
    factor = SymmetricMatrix(system.like.width, system.like.dtype, system.like.device)
    for number, block in enumerate(factor.blocks):
        rows, width = system.panel(number), block.stop - block.start
        for before, panel in zip(factor.blocks[:number], factor.panels, strict=False):
            first = block.start - before.start
            rows.addmm_(panel[:, first : first + width].T, panel[:, first:], alpha=-1)
        corner = torch.linalg.cholesky(rows[:, :width], upper=True)
        rows[:, :width] = corner
        rows[:, width:] = torch.linalg.solve_triangular(corner.T, rows[:, width:], upper=False)
        factor.panels[number] = rows
    return factor


def _substitute_(right: Tensor, factor: SymmetricMatrix) -> Tensor:
    """right ← right U⁻¹ U⁻ᵀ, with the U of `_factor`."""
    numbered = list(enumerate(factor.blocks))
    for number, block in numbered:
        corner = factor.panels[number][:, : block.stop - block.start]
        rest = torch.addmm(right[:, block], right[:, : block.start], factor.above(number), alpha=-1)
        right[:, block] = torch.linalg.solve_triangular(corner, rest, upper=True, left=False)
    for number, block in reversed(numbered):
        panel, width = factor.panels[number], block.stop - block.start
        rest = torch.addmm(right[:, block], right[:, block.stop :], panel[:, width:].T, alpha=-1)
        right[:, block] = torch.linalg.solve_triangular(panel[:, :width].T, rest, upper=False, left=False)
    return right
