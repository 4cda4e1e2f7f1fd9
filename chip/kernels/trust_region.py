"""Solves with a symmetric positive definite matrix whose solution may do only so much in another metric."""

from __future__ import annotations

from math import inf, sqrt

import torch
from torch import Tensor

from chip.kernels.solve import Check, raise_eigenvalues, solve_spd_unchecked_
from chip.kernels.symmetric import SymmetricSum

TOLERANCE = 0.05
"""The bound is met with equality up to this share of it, from below."""
MAX_SOLVES = 100
FARTHEST = 20.0
"""Times the multiplier so far that is tried next, at most."""


def solve_in_trust_region(
    right: Tensor, system: SymmetricSum, metric: SymmetricSum, bound: float, tolerance: float = TOLERANCE
) -> tuple[Tensor, float]:
    """X = right (system + β metric)⁻¹, with the least β ≥ 0 at which tr(X metric Xᵀ) ≤ bound.

    β is the multiplier of the constraint. With system = L Lᵀ, L⁻¹ metric L⁻ᵀ = Q Γ Qᵀ and M = right L⁻ᵀ Q the left side
    is s(β) = Σ ‖M_i‖² γ_i / (1 + β γ_i)², and s(β)^−½ rises nearly as a straight line, as it does where all γ are
    alike (Moré and Sorensen 1983, Computing a Trust Region Step): the secant finds √bound / √s(β) = 1 in a few steps. A
    step is one Cholesky factorization, a small part of what the eigendecomposition would cost.

    Moments whose products were taken in fp32 have eigenvalues a little below zero, and a large β, or a large weight in
    the system, takes these beyond the ridge. Where a factorization fails for it, eigenvalues of the metric below zero
    and of the system below its ridge are put there.

    Args:
        right: (m, d), in the dtype of the system and on its device.
        system: (d, d), symmetric positive definite.
        metric: (d, d), symmetric positive semidefinite.
        bound: > 0.
        tolerance: how far below the bound the left side may be, as a share of it, where β > 0.

    Returns:
        X (m, d), and β; 0 where the bound holds anyway.

    Raises:
        ValueError: the bound is not positive.
        torch.linalg.LinAlgError: a system has no trustworthy solution, or no β was found.
    """
    if not bound > 0:
        raise ValueError(f"the bound must be positive, not {bound}")

    solution = torch.empty_like(right)

    def solve(beta: float) -> float:
        """√bound / √s(β), and the solution in its place."""
        nonlocal system, metric
        try:
            solve_spd_unchecked_(solution.copy_(right), system.plus(metric, beta))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            system, metric = raise_eigenvalues(system, system.ridge), raise_eigenvalues(metric, 0.0)
            solve_spd_unchecked_(solution.copy_(right), system.plus(metric, beta))
        size = metric.quadratic(solution)
        return sqrt(bound / size) if size > 0 else inf

    low, high = 0.0, inf  # β
    ratio_low = solve(low)
    ratio_high, most = inf, 1 / sqrt(1 - tolerance)
    goal, beta = (1 + most) / 2, low
    if ratio_low < 1:  # as if all γ were alike, at first
        beta = (goal / ratio_low - 1) * system.mean_diagonal() / metric.mean_diagonal()
        for _ in range(MAX_SOLVES):
            ratio = solve(beta)
            if 1 <= ratio <= most:
                break
            slope = (ratio - ratio_low) / (beta - low)
            if ratio < 1:
                low, ratio_low = beta, ratio
            else:
                high, ratio_high = beta, ratio
            beta = _next(goal, low, ratio_low, high, ratio_high, slope)
        else:
            raise torch.linalg.LinAlgError(f"no multiplier found for the bound {bound:.3g}")  # type: ignore[attr-defined]
    Check(right).solution(solution, system.plus(metric, beta))
    return solution, beta


def _next(goal: float, low: float, ratio_low: float, high: float, ratio_high: float, slope: float) -> float:
    """Where the secant meets the goal: between `low` and `high`, and never too near an end, or beyond `low`."""
    if high == inf:
        step = (goal - ratio_low) / slope if slope > 0 else inf
        return min(low + step, FARTHEST * low)
    share = (goal - ratio_low) / (ratio_high - ratio_low) if ratio_high < inf else 0.0
    return low + min(max(share, 0.02), 0.9) * (high - low)
