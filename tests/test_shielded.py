"""Theorems of the shielded operator, on tokens drawn at random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chip.hierarchy import Hierarchy
from chip.moments import Owners, SecondMoment, Tokens
from chip.operators import Shielded
from chip.operators.base import Case
from chip.operators.shielded import ShieldedGroups, ShieldedStatistics
from chip.records import Record

SEEDS = st.integers(0, 2**32 - 1)
CPU = torch.device("cpu")
TARGET, SIBLING, FAR = 0, 1, 2
"""Record numbers; one each."""
EACH_ITS_OWN = Owners(torch.arange(3), torch.arange(3), 3)
"""Segment i belongs to record i."""


def _case(shared_image: bool = False) -> Case:
    paths = [("i", "target"), ("i", "sibling"), ("j", "far")]
    image = [Path("a"), Path("a" if shared_image else "b"), Path("c")]
    records = [Record("q", "a", path, file) for path, file in zip(paths, image, strict=True)]
    hierarchy = Hierarchy(records)
    return Case(hierarchy, hierarchy.split([hierarchy.find("target")]))


def _tokens(seed: int, width: int, each: int = 6) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    records = torch.arange(3).repeat_interleave(each)
    return Tokens(
        inputs=torch.randn(3 * each, width, generator=generator, dtype=torch.float64),
        outputs=torch.empty(3 * each, 0),
        keys=torch.where(torch.arange(3 * each) % 2 == 0, -1, 7),
        answering=torch.arange(3 * each) % 2 == 1,
        segments=records,
        owners=EACH_ITS_OWN,
    )


def _empty(width: int, case: Case | None = None) -> ShieldedStatistics:
    return ShieldedStatistics(ShieldedGroups.of(case or _case(), CPU), width)


def _statistics(tokens: Tokens, case: Case | None = None) -> ShieldedStatistics:
    statistics = _empty(tokens.inputs.shape[1], case)
    statistics.update(tokens)
    return statistics


def _seconds(statistics: ShieldedStatistics) -> tuple[SecondMoment, ...]:
    return statistics.forget, statistics.siblings, statistics.rest


def _some(tokens: Tokens, part: Tensor) -> Tokens:
    names = ("inputs", "outputs", "keys", "answering", "segments")
    return replace(tokens, **{name: getattr(tokens, name)[part] for name in names})


def _weight(seed: int, width: int) -> Tensor:
    return torch.randn(5, width, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def _edited(operator: Shielded, weight: Tensor, tokens: Tokens) -> Tensor:
    update = operator.update(weight, None, _statistics(tokens))
    assert update is not None
    return update.weight


def _objective(edited: Tensor, weight: Tensor, tokens: Tokens, operator: Shielded) -> Tensor:
    """The operator's objective, written out token by token."""
    x, record, vision = tokens.inputs, tokens.segments, tokens.vision
    forget = torch.zeros((), dtype=torch.float64)
    for modality in (vision, ~vision):
        towards = x[(record != TARGET) & modality].mean(0)
        chosen = x[(record == TARGET) & modality]
        forget = forget + (chosen @ edited.T - towards @ weight.T).square().sum()
    forget = forget / (record == TARGET).sum()
    assert not isinstance(operator.shield, str)
    moved = ((edited - weight) @ x.T).square().sum(0)
    near, far = moved[record == SIBLING].mean(), moved[record == FAR].mean()
    energy = operator.near * x[record == SIBLING].square().sum(1).mean()
    energy = energy + (1 - operator.near) * x[record == FAR].square().sum(1).mean()
    ridge = operator.ridge * energy / x.shape[1]
    kept = operator.near * near + (1 - operator.near) * far
    return forget + operator.shield * kept + ridge * (edited - weight).square().sum()


@given(SEEDS, st.floats(0.1, 100), st.floats(1e-3, 10), st.floats(0.1, 0.9))
def test_gradient_of_the_objective_is_zero_at_the_solution(seed: int, shield: float, ridge: float, near: float) -> None:
    operator, tokens, weight = Shielded(shield=shield, ridge=ridge, near=near), _tokens(seed, 8), _weight(seed, 8)
    edited = _edited(operator, weight, tokens).requires_grad_(True)
    value = _objective(edited, weight, tokens, operator)
    (gradient,) = torch.autograd.grad(value, edited)
    assert gradient.abs().max() < 1e-4 * (1 + shield)


@given(SEEDS)
def test_no_random_step_improves_the_objective(seed: int) -> None:
    operator, tokens, weight = Shielded(shield=8.0), _tokens(seed, 8), _weight(seed, 8)
    edited = _edited(operator, weight, tokens)
    best = _objective(edited, weight, tokens, operator)
    for step in range(5):
        other = edited + 1e-2 * _weight(seed + step, 8)
        assert _objective(other, weight, tokens, operator) > best


@given(SEEDS)
def test_an_endless_shield_or_ridge_changes_nothing(seed: int) -> None:
    tokens, weight = _tokens(seed, 8), _weight(seed, 8)
    for operator in (Shielded(shield=1e9), Shielded(shield=8.0, ridge=1e9)):
        torch.testing.assert_close(_edited(operator, weight, tokens), weight, atol=1e-5, rtol=0)


@given(SEEDS)
def test_separable_targets_are_moved_exactly_and_the_retained_stay(seed: int) -> None:
    """Target inputs orthogonal to the retained ones and independent: λ → 0 removes exactly and costs nothing."""
    tokens, weight = _tokens(seed, 32, each=4), _weight(seed, 32)
    mine = tokens.segments == TARGET
    inputs = tokens.inputs.clone()
    inputs[mine, 16:] = 0
    inputs[~mine, :16] = 0
    tokens = replace(tokens, inputs=inputs)
    edited = _edited(Shielded(shield=8.0, ridge=1e-9), weight, tokens)
    x = inputs
    torch.testing.assert_close(x[~mine] @ edited.T, x[~mine] @ weight.T, atol=1e-5, rtol=0)
    for modality in (tokens.vision, ~tokens.vision):
        towards = x[~mine & modality].mean(0) @ weight.T
        torch.testing.assert_close(
            x[mine & modality] @ edited.T, towards.expand(int((mine & modality).sum()), -1), atol=1e-5, rtol=0
        )


@given(SEEDS, st.permutations(range(18)), st.integers(1, 17))
def test_statistics_do_not_depend_on_batches_or_order(seed: int, order: list[int], cut: int) -> None:
    tokens = _tokens(seed, 8)
    whole, parts = _statistics(tokens), _empty(8)
    for part in (order[:cut], order[cut:]):
        parts.update(_some(tokens, torch.tensor(part)))
    for a, b in zip(_seconds(whole), _seconds(parts), strict=True):
        assert a.count == b.count
        torch.testing.assert_close(a.half.triu(), b.half.triu(), rtol=1e-5, atol=1e-5)
    for mine, theirs in ((whole.retained, parts.retained), (whole.target, parts.target)):
        torch.testing.assert_close(mine.mean_at(mine.keys), theirs.mean_at(mine.keys))


@given(SEEDS)
def test_a_shared_token_counts_once_for_each_record_that_owns_it(seed: int) -> None:
    tokens = _tokens(seed, 8, each=2)
    # The far record's tokens belong to the sibling as well: as if they stood there twice.
    shared = replace(tokens, owners=Owners(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 1]), 3))
    again = replace(_some(tokens, torch.tensor([4, 5])), segments=torch.tensor([1, 1]))
    twice, once = _statistics(tokens), _statistics(shared)
    twice.update(again)
    for a, b in zip(_seconds(once), _seconds(twice), strict=True):
        assert a.count == b.count
        torch.testing.assert_close(a.half.triu(), b.half.triu())
    for mine, theirs in ((once.retained, twice.retained), (once.target, twice.target)):
        torch.testing.assert_close(mine.mean_at(mine.keys), theirs.mean_at(mine.keys))


def test_image_tokens_that_a_retained_record_shows_too_are_not_the_targets() -> None:
    tokens = _tokens(0, 8)
    alone, shared = _statistics(tokens), _statistics(tokens, _case(shared_image=True))
    assert alone.forget.count == 6
    assert shared.forget.count == 3
    assert shared.siblings.count == alone.siblings.count


def test_a_shared_picture_counts_by_the_targets_share_and_text_by_node() -> None:
    def pictures(target: list[Path | None], other: Path | None) -> float:
        records = [Record("q", "a", ("i", "target", f"study_{n}"), image) for n, image in enumerate(target)]
        hierarchy = Hierarchy([*records, Record("q", "a", ("i", "sibling"), other)])
        case = Case(hierarchy, hierarchy.split([hierarchy.find("target")]))
        return ShieldedGroups.of(case, CPU).pictures

    scan = Path("scan")
    assert pictures([scan, Path("card")], Path("other")) == 2
    assert pictures([scan, scan], Path("other")) == 1
    assert pictures([scan], scan) == 0.5
    assert pictures([scan, None, None], None) == 3
