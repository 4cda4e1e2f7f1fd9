"""The nearest matrices of low rank, in a metric and without."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chip.kernels.low_rank import leading_outputs, low_rank_factors
from chip.kernels.symmetric import SymmetricSum

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])


def _drawn(seed: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@SHAPES
@given(SEEDS, st.integers(1, 8))
def test_a_cut_change_is_the_singular_value_decomposition_in_the_metric(
    shape: tuple[int, int], seed: int, rank: int
) -> None:
    """The SVD of D A^½ cut at r, times A^−½, with the symmetric root written out."""
    change, half = _drawn(seed, *shape), _drawn(seed + 1, shape[1], shape[1] + 3)
    metric = half @ half.T + 0.1 * torch.eye(shape[1], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(metric)
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    u, s, v = torch.linalg.svd(change @ root, full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ v[:rank] @ inverse
    outputs = leading_outputs(change, rank, SymmetricSum.of(metric.triu()))
    torch.testing.assert_close(outputs @ (outputs.T @ change), expected, rtol=1e-6, atol=1e-7)


@SHAPES
def test_without_a_metric_it_is_the_plain_decomposition(shape: tuple[int, int]) -> None:
    change = _drawn(1, *shape)
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    outputs = leading_outputs(change, 2)
    torch.testing.assert_close(outputs @ (outputs.T @ change), (u[:, :2] * s[:2]) @ v[:2])


@SHAPES
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_factors_have_the_rank_that_the_change_has_but_for_noise(shape: tuple[int, int], rank: int) -> None:
    change = _drawn(2, shape[0], rank) @ _drawn(3, rank, shape[1])
    up, down = low_rank_factors(change + 1e-9 * _drawn(4, *shape), 1e-7)
    assert (up.shape, down.shape) == ((shape[0], rank), (rank, shape[1]))
    torch.testing.assert_close(up @ down, change, rtol=1e-6, atol=1e-7)
