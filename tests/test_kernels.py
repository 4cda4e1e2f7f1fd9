"""The linear algebra against its definition, in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.kernels import gram, solve, subspace, symmetric
from chip.kernels.gram import accumulate_gram
from chip.kernels.solve import Check, solve_spd_
from chip.kernels.subspace import leading_bases, leading_basis, project_rows_
from chip.kernels.symmetric import SymmetricMatrix, SymmetricSum

SEEDS = st.integers(0, 2**32 - 1)
FLOATS = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _distance(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, Frobenius."""
    return float(torch.linalg.norm(result.double() - expected) / torch.linalg.norm(expected).clamp(min=1e-30))


class Small:
    """Blocks so small that small matrices have several."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gram, "_strip_rows", lambda _: 3)
        monkeypatch.setattr(symmetric, "panel_rows", lambda _: 7)
        monkeypatch.setattr(solve, "CHECKED", 4)
        monkeypatch.setattr(subspace, "ROWS", 3)
        monkeypatch.setattr(subspace, "BLOCK", 24)


# Gram matrices


@settings(max_examples=40)
@given(SEEDS, st.integers(0, 40), st.integers(1, 300), FLOATS)
def test_gram_is_the_sum_of_outer_products(seed: int, rows: int, width: int, dtype: torch.dtype) -> None:
    x = _random(seed, rows, width).to(dtype)
    total = _zeros(width)
    accumulate_gram(total, x)
    whole = total.dense()
    assert _distance(whole, x.double().T @ x.double()) < (1e-14 if dtype == torch.float64 else 1e-5)
    assert torch.equal(whole, whole.T)


@given(SEEDS, st.lists(st.integers(0, 4), min_size=1, max_size=20), st.sampled_from([torch.int64, torch.bfloat16]))
def test_a_weight_is_a_row_repeated(seed: int, repeats: list[int], dtype: torch.dtype) -> None:
    x, weights = _random(seed, len(repeats), 9), torch.tensor(repeats)
    weighted, repeated = _zeros(9), _zeros(9)
    accumulate_gram(weighted, x, weights.to(dtype))
    accumulate_gram(repeated, x.repeat_interleave(weights, 0))
    torch.testing.assert_close(weighted.dense(), repeated.dense())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gram_keeps_its_bits_over_thousands_of_batches(dtype: torch.dtype) -> None:
    """In fp32 too, which is all that MPS has: tokens with a mean, so that every entry grows and none starts anew."""
    total, expected = _zeros(12, dtype), torch.zeros(12, 12, dtype=torch.float64)
    for seed in range(4000):
        batch = (_random(seed, 20, 12) + 1).float()
        accumulate_gram(total, batch)
        expected += batch.double().T @ batch.double()
    assert _distance(total.dense(), expected) < 1e-5


class TestGramInBlocks(Small):
    @pytest.mark.parametrize("width", [1, 7, 8, 30])
    def test_half_is_the_whole(self, width: int) -> None:
        x, weights = _random(0, 50, width), torch.rand(50, dtype=torch.float64)
        total = _zeros(width)
        accumulate_gram(total, x, weights)
        assert sum(panel.numel() for panel in total.panels) <= width * (width + 7) / 2
        torch.testing.assert_close(total.dense(), x.T @ (weights[:, None] * x))

    @pytest.mark.parametrize("width", [1, 7, 8, 30])
    def test_a_sum_that_is_never_made_is_that_sum(self, width: int) -> None:
        first, second, x = _system(0, width), _system(1, width), _random(2, 5, width)
        lazy = SymmetricSum.of(first).plus(SymmetricSum(((0.5, SymmetricMatrix.of(second)),), 0.25), 3)
        whole = first + 1.5 * second + 0.75 * torch.eye(width, dtype=torch.float64)
        torch.testing.assert_close(lazy.dense(), whole)
        torch.testing.assert_close(lazy.product(x), x @ whole)
        assert lazy.quadratic(x) == pytest.approx(float(torch.trace(x @ whole @ x.T)))
        assert lazy.mean_diagonal() == pytest.approx(float(whole.diagonal().mean()))


# Ridge solves


def _zeros(width: int, dtype: torch.dtype = torch.float64) -> SymmetricMatrix:
    return SymmetricMatrix(width, dtype, torch.device("cpu"))


def _system(seed: int, width: int) -> torch.Tensor:
    root = _random(seed, width, width)
    return root @ root.T + torch.eye(width, dtype=torch.float64)


@given(SEEDS, st.integers(1, 20), st.booleans())
def test_solution_solves(seed: int, width: int, single: bool) -> None:
    matrix, right = _system(seed, width), _random(seed + 1, 3, width)
    if single:
        matrix += 10 * torch.eye(width, dtype=torch.float64)
    dtype = torch.float32 if single else torch.float64
    result = solve_spd_(right.to(dtype, copy=True), SymmetricSum.of(matrix.to(dtype)))
    assert result.dtype == dtype
    assert _distance(result.double() @ matrix, right) < (1e-4 if single else 1e-10)


class TestSolveInBlocks(Small):
    @pytest.mark.parametrize("width", [1, 7, 8, 30])
    def test_upper_triangle_is_read_and_stays(self, width: int) -> None:
        matrix, right = _system(0, width), _random(1, 5, width)
        lost = torch.full_like(matrix, torch.nan).tril(-1)
        system = SymmetricSum.of(matrix.triu() + lost)
        result = right.clone()
        assert solve_spd_(result, system) is result
        torch.testing.assert_close(result, torch.linalg.solve(matrix, right, left=False))
        assert torch.equal(system.dense(), matrix)

    def test_a_few_sums_of_equations_show_what_is_wrong_in_any(self) -> None:
        matrix, right = _system(0, 30), _random(1, 200, 30)
        system, solution, check = SymmetricSum.of(matrix), torch.linalg.solve(matrix, right, left=False), Check(right)
        assert check.residual(solution, system) < 1e-12
        solution[137] += 1e-3
        whole = torch.linalg.norm(solution @ matrix - right) / torch.linalg.norm(right)
        assert whole / 2 < check.residual(solution, system) < 2 * whole

    def test_ridge_of_a_gram_that_was_not_symmetrized(self) -> None:
        x, right = _random(0, 12, 30), _random(1, 5, 30)
        gram = _zeros(30)
        accumulate_gram(gram, x)
        expected = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(30, dtype=torch.float64), right, left=False)
        torch.testing.assert_close(solve_spd_(right, SymmetricSum(((1.0, gram),), 0.1)), expected)

    @pytest.mark.parametrize("place", [0, 20])
    def test_indefinite_matrix_is_an_error(self, place: int) -> None:
        matrix = torch.eye(30, dtype=torch.float64)
        matrix[place, place] = -1
        with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):  # type: ignore[attr-defined]
            solve_spd_(torch.ones(1, 30, dtype=torch.float64), SymmetricSum.of(matrix))

    def test_a_solution_that_does_not_solve_is_an_error(self) -> None:
        system = 1.0 / (torch.arange(12)[:, None] + torch.arange(12) + 1)  # Hilbert's matrix: condition 1e16
        matrix = (system + 1e-7 * torch.eye(12)).float()
        with pytest.raises(torch.linalg.LinAlgError, match="relative residual"):  # type: ignore[attr-defined]
            solve_spd_(_random(0, 3, 12).float(), SymmetricSum.of(matrix))


# Bases


@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 1))
def test_basis_spans_what_the_svd_spans(seed: int, rows: int, columns: int, variance_threshold: float) -> None:
    directions = _random(seed, rows, columns)
    basis = leading_basis(directions, variance_threshold)
    _, values, right = torch.linalg.svd(directions, full_matrices=False)
    held = values.square().cumsum(0) / values.square().sum()
    rank = int((held < variance_threshold * (1 - 1e-12)).sum()) + 1
    assert basis.shape == (columns, rank)
    torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close(basis @ basis.T, right[:rank].T @ right[:rank], atol=1e-6, rtol=0)


@given(SEEDS, st.integers(0, 5), st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 1))
def test_bases_of_a_batch_are_each_its_own(
    seed: int, batch: int, rows: int, columns: int, variance_threshold: float
) -> None:
    directions = _random(seed, batch, rows, columns)
    directions[:1] = 0
    bases = leading_bases(directions, variance_threshold)
    assert len(bases) == batch
    for basis, alone in zip(bases, directions, strict=True):
        expected = leading_basis(alone, variance_threshold)
        assert basis.shape == expected.shape
        torch.testing.assert_close(basis @ basis.T, expected @ expected.T)


def test_basis_of_dependent_directions_has_their_rank() -> None:
    directions = _random(0, 2, 9)
    assert leading_basis(torch.cat((directions, directions, -directions)), 1.0).shape == (9, 2)
    assert leading_basis(torch.zeros(3, 5, dtype=torch.float64), 0.95).shape == (5, 0)
    assert leading_basis(torch.cat((directions, directions)).float(), 1.0).shape == (9, 2)


@given(SEEDS, st.integers(2, 8))
def test_basis_is_orthonormal_down_to_the_smallest_direction(seed: int, count: int) -> None:
    lengths = torch.logspace(0, -5.5, count, dtype=torch.float64)
    basis = leading_basis(lengths[:, None] * torch.linalg.qr(_random(seed, 20, count)).Q.T, 1.0)
    assert basis.shape == (20, count)
    torch.testing.assert_close(basis.T @ basis, torch.eye(count, dtype=torch.float64))


# Projections


def _projected(weight: torch.Tensor, rows: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """By a dense projector, in fp64."""
    expected = weight.double()
    expected[rows] -= basis @ basis.T @ expected[rows]
    return expected


def _draw(seed: int, height: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (height,) of twice as many, and a basis on them."""
    rows = torch.randperm(2 * height, generator=torch.Generator().manual_seed(seed))[:height]
    return rows, torch.linalg.qr(_random(seed, height, min(height, rank))).Q


def _check_projected(new: torch.Tensor, old: torch.Tensor, rows: torch.Tensor, basis: torch.Tensor) -> None:
    """Rounded to the dtype once, and before it where the products add up, by what the columns' size explains."""
    unit, wide = torch.finfo(old.dtype).eps, torch.finfo(torch.promote_types(old.dtype, torch.float32)).eps
    atol = 8 * wide * float(torch.linalg.vector_norm(old.double(), dim=0).max())
    torch.testing.assert_close(new.double(), _projected(old, rows, basis), rtol=unit, atol=atol)
    others = torch.ones(len(old), dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(new[others], old[others])


@given(SEEDS, st.integers(1, 12), st.integers(1, 30), st.integers(0, 4), FLOATS)
def test_projection_is_that_of_the_dense_projector(
    seed: int, height: int, width: int, rank: int, dtype: torch.dtype
) -> None:
    rows, basis = _draw(seed, height, rank)
    weight = _random(seed, 2 * height, width).to(dtype)
    before = weight.clone()
    project_rows_(weight, rows, basis)
    _check_projected(weight, before, rows, basis)


@given(SEEDS, st.integers(1, 12), st.integers(1, 30))
def test_projection_removes_the_subspace_and_is_idempotent(seed: int, height: int, width: int) -> None:
    rows, basis = _draw(seed, height, 3)
    weight = _random(seed, 2 * height, width)
    project_rows_(weight, rows, basis)
    torch.testing.assert_close(basis.T @ weight[rows], torch.zeros(basis.shape[1], width, dtype=torch.float64))
    once = weight.clone()
    project_rows_(weight, rows, basis)
    torch.testing.assert_close(weight, once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("height", [200, 600])
def test_projection_is_rounded_once(dtype: torch.dtype, height: int) -> None:
    """Also where many rows are gone through twice; a sum in another order moves a few values to their neighbor."""
    rows, basis = _draw(0, height, 16)
    weight = (_random(1, 2 * height, 700) * 0.02).to(dtype)
    before, expected = weight.clone(), _projected(weight, rows, basis).to(dtype)
    project_rows_(weight, rows, basis)
    assert (weight == expected).double().mean() >= 0.999
    _check_projected(weight, before, rows, basis)


def test_a_bias_is_a_matrix_of_one_column() -> None:
    rows, basis = _draw(0, 9, 3)
    bias = _random(0, 18)
    expected = _projected(bias, rows, basis)
    project_rows_(bias, rows, basis)
    torch.testing.assert_close(bias, expected)


@pytest.mark.parametrize("offset", [0, 1, 8])
def test_projection_of_a_weight_that_begins_anywhere(offset: int) -> None:
    """As a tensor of a mapped file may, or a transposed one: where its rows are not made of whole words, they are moved
    by value."""
    rows, basis = _draw(0, 12, 2)
    values = _random(1, offset + 24 * 32).bfloat16()[offset:]
    for weight in (values.clone().view(24, 32), values.view(24, 32), values.clone().view(32, 24).T):
        before = weight.clone()
        project_rows_(weight, rows, basis)
        _check_projected(weight, before, rows, basis)


class TestProjectionInBlocks(Small):
    @pytest.mark.parametrize("width", [1, 32, 100])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_blocks_make_the_whole(self, width: int, dtype: torch.dtype) -> None:
        rows, basis = _draw(0, 8, 2)
        weight = torch.nn.Parameter(_random(1, 16, width).to(dtype))
        before = weight.detach().clone()
        project_rows_(weight, rows, basis)
        _check_projected(weight.detach(), before, rows, basis)
