"""The linear algebra against its definition, in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chip.kernels.gram import accumulate_gram
from chip.kernels.solve import solve_spd
from chip.kernels.subspace import leading_basis, project_out

SEEDS = st.integers(0, 2**32 - 1)


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 1))
def test_basis_spans_what_the_svd_spans(seed: int, rows: int, columns: int, energy: float) -> None:
    directions = _random(seed, rows, columns)
    basis = leading_basis(directions, energy)
    _, values, right = torch.linalg.svd(directions, full_matrices=False)
    held = values.square().cumsum(0) / values.square().sum()
    rank = int((held < energy * (1 - 1e-12)).sum()) + 1
    assert basis.shape == (columns, rank)
    torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close(basis @ basis.T, right[:rank].T @ right[:rank], atol=1e-6, rtol=0)


def test_basis_of_dependent_directions_has_their_rank() -> None:
    directions = _random(0, 2, 9)
    assert leading_basis(torch.cat((directions, directions, -directions)), 1.0).shape == (9, 2)
    assert leading_basis(torch.zeros(3, 5, dtype=torch.float64), 0.95).shape == (5, 0)


@given(SEEDS, st.integers(1, 10), st.integers(1, 10))
def test_projection_removes_the_subspace_and_is_idempotent(seed: int, rows: int, columns: int) -> None:
    basis = leading_basis(_random(seed, 3, rows), 0.95)
    once = project_out(_random(seed + 1, rows, columns), basis)
    torch.testing.assert_close(basis.T @ once, torch.zeros(basis.shape[1], columns, dtype=torch.float64))
    torch.testing.assert_close(project_out(once, basis), once)


@given(SEEDS, st.integers(1, 20))
def test_solution_solves(seed: int, width: int) -> None:
    root = _random(seed, width, width)
    matrix = root @ root.T + torch.eye(width, dtype=torch.float64)
    right = _random(seed + 1, 3, width)
    torch.testing.assert_close(solve_spd(right, matrix) @ matrix, right)


def test_indefinite_matrix_is_an_error() -> None:
    with pytest.raises(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        solve_spd(torch.ones(1, 2, dtype=torch.float64), torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))


def test_gram_keeps_its_bits_over_many_batches() -> None:
    total = torch.zeros(4, 4, dtype=torch.float64)
    batches = [_random(i, 50, 4).float() for i in range(200)]
    for batch in batches:
        accumulate_gram(total, batch)
    everything = torch.cat(batches).double()
    torch.testing.assert_close(total, everything.T @ everything, rtol=1e-6, atol=1e-3)
