"""Solves with a symmetric positive definite matrix whose solution may do only so much in another metric."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log

import torch
from torch import Tensor

from chip.kernels.gram import symmetrize_
from chip.kernels.solve import solve_spd_

TOLERANCE = 0.01
"""The bound is met with equality up to this share of it, from below."""
MAX_SOLVES = 40
STEP = 2.0
"""Of log β, at first."""


def solve_in_trust_region(
    right: Tensor, system: Tensor, metric: Tensor, bound: float, tolerance: float = TOLERANCE
) -> tuple[Tensor, float]:
    """X = right (system + β metric)⁻¹, with the least β ≥ 0 at which tr(X metric Xᵀ) ≤ bound.

    β is the multiplier of the constraint. With system = L Lᵀ, L⁻¹ metric L⁻ᵀ = Q Γ Qᵀ and M = right L⁻ᵀ Q the left side
    is Σ ‖M_i‖² γ_i / (1 + β γ_i)² (Conn, Gould and Toint, Trust-Region Methods, section 7.3): it falls monotonically in
    β, at last as β⁻², so that its logarithm is nearly a line over log β, and the secant is taken there. A step is one
    Cholesky factorization, a small part of what the eigendecomposition would cost.

    Args:
        right: (m, d).
        system: (d, d), symmetric positive definite; what stands below the diagonal is not read.
        metric: (d, d), symmetric positive semidefinite; read likewise, and made whole in place.
        bound: > 0.
        tolerance: how far below the bound the left side may be, as a share of it, where β > 0.

    Returns:
        X (m, d) in the dtype of `system`, and β; 0 where the bound holds anyway.

    Raises:
        ValueError: the bound is not positive.
        torch.linalg.LinAlgError: a system has no trustworthy solution, or no β was found.
    """
    if not bound > 0:
        raise ValueError(f"the bound must be positive, not {bound}")
    symmetrize_(metric)

    def excess(beta: float) -> tuple[Tensor, float]:
        """The solution, and by how much it exceeds the bound, as the logarithm of their ratio."""
        solution = solve_spd_(right, torch.add(system, metric, alpha=beta))
        size = float(((solution @ metric) * solution).sum())
        return solution, log(size / bound) if size > 0 else -float("inf")

    solution, over = excess(0.0)
    if over <= 0:
        return solution, 0.0
    center = log(float(system.diagonal().mean() / metric.diagonal().mean()))
    high, over_high, solution = _walk(excess, center, STEP, until=lambda over: over <= 0)
    low, over_low, _ = _walk(excess, high - STEP, -STEP, until=lambda over: over > 0)
    goal = log(1 - tolerance) / 2
    for _ in range(MAX_SOLVES):
        if over_high >= log(1 - tolerance):
            return solution, exp(high)
        share = (over_low - goal) / (over_low - over_high)
        middle = low + min(max(share, 0.05), 0.95) * (high - low)  # the secant, never too near an end
        candidate, over = excess(exp(middle))
        if over <= 0:
            high, over_high, solution = middle, over, candidate
        else:
            low, over_low = middle, over
    raise torch.linalg.LinAlgError(f"no multiplier found for the bound {bound:.3g}")  # type: ignore[attr-defined]


def _walk(
    excess: Callable[[float], tuple[Tensor, float]], start: float, step: float, until: Callable[[float], bool]
) -> tuple[float, float, Tensor]:
    """The first log β from `start` on, in ever larger steps, at which the excess is as wanted; it, and the solution."""
    position = start
    for _ in range(MAX_SOLVES):
        solution, over = excess(exp(position))
        if until(over):
            return position, over, solution
        position, step = position + step, 2 * step
    raise torch.linalg.LinAlgError("no multiplier found")  # type: ignore[attr-defined]
