"""The multiplier of a trust region: theorems of constrained least squares, on random problems."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chip.kernels.solve import solve_spd_
from chip.kernels.symmetric import SymmetricSum
from chip.kernels.trust_region import TOLERANCE, solve_in_trust_region

SEEDS = st.integers(0, 2**31)
WIDTHS = st.integers(1, 12)
TIGHT = st.floats(-6, -0.05)  # logarithm of the bound over what a free solution has
LOOSE = st.floats(0.05, 2)


def _problem(seed: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A right side, a definite system, and a metric that need not be definite."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    system, half = draw(width, 2 * width), draw(width, max(1, width // 2))
    return draw(3, width), system @ system.T + 1e-3 * torch.eye(width, dtype=torch.float64), half @ half.T


def _size(solution: Tensor, metric: Tensor) -> float:
    return float(((solution @ metric) * solution).sum())


def _plain(right: Tensor, system: Tensor) -> Tensor:
    return solve_spd_(right.clone(), SymmetricSum.of(system))


@given(SEEDS, WIDTHS, TIGHT | LOOSE)
def test_the_bound_holds_with_equality_or_there_is_no_multiplier(seed: int, width: int, exponent: float) -> None:
    right, system, metric = _problem(seed, width)
    free = _size(_plain(right, system), metric)
    bound = 10**exponent * free
    solution, multiplier = solve_in_trust_region(right, SymmetricSum.of(system), SymmetricSum.of(metric), bound)
    size = _size(solution, metric)
    if exponent >= 0:
        assert multiplier == 0
        torch.testing.assert_close(solution, _plain(right, system))
    else:
        assert multiplier > 0
        assert (1 - 2 * TOLERANCE) * bound <= size <= bound * (1 + 1e-9)


@given(SEEDS, WIDTHS, TIGHT)
def test_the_solution_is_that_of_the_system_with_the_multiplier(seed: int, width: int, exponent: float) -> None:
    right, system, metric = _problem(seed, width)
    bound = 10**exponent * _size(_plain(right, system), metric)
    solution, multiplier = solve_in_trust_region(right, SymmetricSum.of(system), SymmetricSum.of(metric), bound)
    torch.testing.assert_close(solution, _plain(right, system + multiplier * metric), rtol=1e-6, atol=1e-12)


@given(SEEDS, WIDTHS)
def test_a_tighter_bound_has_a_larger_multiplier_and_moves_less_in_the_metric(seed: int, width: int) -> None:
    right, system, metric = _problem(seed, width)
    free = _size(_plain(right, system), metric)
    multipliers = [
        solve_in_trust_region(right, SymmetricSum.of(system), SymmetricSum.of(metric), share * free)[1]
        for share in (0.5, 0.05, 5e-4)
    ]
    assert multipliers == sorted(multipliers)


def test_what_the_metric_does_not_see_is_solved_as_without_it() -> None:
    right = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    system, metric = torch.eye(2, dtype=torch.float64), torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    solution, _ = solve_in_trust_region(right, SymmetricSum.of(system), SymmetricSum.of(metric), 1e-8)
    assert solution[0, 1] == pytest.approx(1)
    assert solution[0, 0] == pytest.approx(1e-4, rel=0.02)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_a_bound_that_is_not_positive_is_refused(bound: float) -> None:
    right, system, metric = _problem(0, 3)
    with pytest.raises(ValueError, match="positive"):
        solve_in_trust_region(right, SymmetricSum.of(system), SymmetricSum.of(metric), bound)


def test_a_metric_that_rounding_left_below_zero_in_places_is_taken_for_what_it_stands_for() -> None:
    right, drawn, _ = _problem(0, 12)
    basis = torch.linalg.qr(drawn).Q[:, :6]
    exact, identity = SymmetricSum.of(basis @ basis.T), SymmetricSum.of(torch.eye(12, dtype=torch.float64))
    system, rounded = SymmetricSum(((0.0, exact.like),), ridge=1e-3), exact.plus(identity, -1e-6)
    bound = 1e-14 * exact.quadratic(solve_spd_(right.clone(), system))
    solution, multiplier = solve_in_trust_region(right, system, rounded, bound)
    with pytest.raises(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        solve_spd_(right.clone(), system.plus(rounded, multiplier))
    assert (1 - 2 * TOLERANCE) * bound <= exact.quadratic(solution) <= bound * 1.001
    wanted, _ = solve_in_trust_region(right, system, exact, bound)
    assert torch.linalg.norm(solution - wanted) < 1e-4 * torch.linalg.norm(wanted)
