"""Theorems of the shielded operator, on tokens drawn at random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chip.data.hierarchy import Hierarchy
from chip.data.record import FREE_TEXT, Record
from chip.data.request import ForgetRequest, Partition
from chip.kernels.trust_region import TOLERANCE
from chip.methods import Shielded
from chip.methods.shielded import OVERSHOOT
from chip.methods.shielded_statistics import ShieldedStatistics, ShieldedWeights
from chip.model.tokens import SegmentRecords, TokenRole, Tokens

SEEDS = st.integers(0, 2**32 - 1)
CPU = torch.device("cpu")
TARGET, SIBLING, ALIKE, FAR = range(4)
"""Record numbers; one each."""
EACH_ITS_OWN = SegmentRecords(torch.arange(4), torch.arange(4), 4)
"""Segment i belongs to record i."""
EACH = 6
"""Tokens of a record: of the image and of the answer in turn."""


def _case(shared_image: bool = False) -> ForgetRequest:
    paths = [("i", "target"), ("i", "sibling"), ("j", "alike"), ("j", "far")]
    image = [Path("a"), Path("a" if shared_image else "b"), Path("c"), Path("d")]
    said = ["yes", "no", "Yes.", "no"]
    records = [Record(f"{path}?", answer, path, file) for path, file, answer in zip(paths, image, said, strict=True)]
    hierarchy = Hierarchy(records)
    return ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find("target")]))


def _tokens(seed: int, width: int, each: int = EACH) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    records, spoken = torch.arange(4).repeat_interleave(each), torch.arange(4 * each) % 2 == 1
    return Tokens(
        inputs=torch.randn(4 * each, width, generator=generator, dtype=torch.float64),
        outputs=torch.empty(4 * each, 0),
        ids=torch.where(spoken, 7, 0),
        roles=torch.where(spoken, TokenRole.ANSWER, TokenRole.IMAGE),
        segments=records,
        owners=EACH_ITS_OWN,
        starts=torch.zeros(4 * each, dtype=torch.bool),
    )


def _empty(width: int, request: ForgetRequest | None = None, neighbor_weight: float = 0.3) -> ShieldedStatistics:
    return ShieldedStatistics(ShieldedWeights.of(request or _case(), neighbor_weight, CPU), width)


def _statistics(
    tokens: Tokens, request: ForgetRequest | None = None, neighbor_weight: float = 0.3
) -> ShieldedStatistics:
    statistics = _empty(tokens.inputs.shape[1], request, neighbor_weight)
    statistics.update(tokens)
    return statistics


def _some(tokens: Tokens, chosen: Tensor) -> Tokens:
    names = (
        "inputs",
        "outputs",
        "ids",
        "roles",
        "segments",
        "starts",
        *(() if tokens.original_inputs is None else ("original_inputs",)),
    )
    return replace(tokens, **{name: getattr(tokens, name)[chosen] for name in names})


def _weight(seed: int, width: int) -> Tensor:
    return torch.randn(5, width, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def _edited(method: Shielded, weight: Tensor, tokens: Tokens) -> Tensor:
    update = method.solve(weight, None, _statistics(tokens, neighbor_weight=method.neighbor_weight))
    assert update is not None
    return update.weight


def _objective(edited: Tensor, weight: Tensor, tokens: Tokens, method: Shielded) -> Tensor:
    """The operator's objective, written out token by token."""
    x, record, vision = tokens.inputs, tokens.segments, tokens.vision
    before = x if tokens.original_inputs is None else tokens.original_inputs
    forget = torch.zeros((), dtype=torch.float64)
    for modality in (vision, ~vision):
        mean = before[(record != TARGET) & modality].mean(0)
        towards = mean - OVERSHOOT * (before[(record == TARGET) & modality] - mean)
        chosen = x[(record == TARGET) & modality]
        forget = forget + (chosen @ edited.T - towards @ weight.T).square().sum()
    forget = forget / (record == TARGET).sum()
    assert not isinstance(method.retain_weight, str)
    moved = (edited @ x.T - weight @ before.T).square().sum(0)
    kept, energy = torch.zeros((), dtype=torch.float64), 0.0
    even = (1 - 2 * method.neighbor_weight) / 3
    for other, share in ((SIBLING, method.neighbor_weight + even), (ALIKE, method.neighbor_weight + even), (FAR, even)):
        kept = kept + share * moved[record == other].mean()
        energy += share * float(x[record == other].square().sum(1).mean())
    ridge = method.ridge * energy / x.shape[1]
    return forget + method.retain_weight * kept + ridge * (edited - weight).square().sum()


def _behind_an_edit(seed: int, width: int) -> Tokens:
    """What came in before is something else."""
    tokens = _tokens(seed, width)
    return replace(tokens, original_inputs=tokens.inputs + 0.3 * _tokens(seed + 1, width).inputs)


@given(SEEDS, st.floats(0.1, 100), st.floats(1e-3, 10), st.floats(0.05, 0.45), st.booleans())
def test_gradient_of_the_objective_is_zero_at_the_solution(
    seed: int, retain_weight: float, ridge: float, neighbor_weight: float, behind: bool
) -> None:
    method, weight = (
        Shielded(retain_weight=retain_weight, ridge=ridge, neighbor_weight=neighbor_weight),
        _weight(seed, 8),
    )
    tokens = _behind_an_edit(seed, 8) if behind else _tokens(seed, 8)
    edited = _edited(method, weight, tokens).requires_grad_(True)
    value = _objective(edited, weight, tokens, method)
    (gradient,) = torch.autograd.grad(value, edited)
    assert gradient.abs().max() < 1e-4 * (1 + retain_weight)


@given(SEEDS)
def test_no_random_step_improves_the_objective(seed: int) -> None:
    method, tokens, weight = Shielded(retain_weight=8.0), _tokens(seed, 8), _weight(seed, 8)
    edited = _edited(method, weight, tokens)
    best = _objective(edited, weight, tokens, method)
    for step in range(5):
        other = edited + 1e-2 * _weight(seed + step, 8)
        assert _objective(other, weight, tokens, method) > best


@given(SEEDS, st.booleans())
def test_the_metric_says_what_an_error_costs(seed: int, behind: bool) -> None:
    tokens, method = (_behind_an_edit if behind else _tokens)(seed, 8), Shielded(retain_weight=4.0)
    weight = _weight(seed, 8)
    update = method.solve(weight, None, _statistics(tokens, neighbor_weight=method.neighbor_weight))
    assert update is not None
    assert update.metric is not None
    error = torch.randn_like(weight)
    cost = _objective(update.weight + error, weight, tokens, method) - _objective(update.weight, weight, tokens, method)
    assert update.metric.quadratic(error) == pytest.approx(float(cost))


@given(SEEDS)
def test_an_endless_shield_or_ridge_changes_nothing(seed: int) -> None:
    tokens, weight = _tokens(seed, 8), _weight(seed, 8)
    for method in (Shielded(retain_weight=1e9), Shielded(retain_weight=8.0, ridge=1e9)):
        torch.testing.assert_close(_edited(method, weight, tokens), weight, atol=1e-5, rtol=0)


@given(SEEDS)
def test_what_an_edit_before_it_has_done_is_undone(seed: int) -> None:
    """Where that edit was an invertible map, and nothing is to be forgotten, W' takes it back."""
    tokens, weight = _tokens(seed, 8), _weight(seed, 8)
    turn = torch.eye(8, dtype=torch.float64) + 0.1 * _tokens(seed + 1, 8).inputs[:8]
    behind = replace(tokens, inputs=tokens.inputs @ turn.T, original_inputs=tokens.inputs)
    edited = _edited(Shielded(retain_weight=1e6, ridge=1e-9), weight, behind)
    torch.testing.assert_close(edited @ turn, weight, atol=1e-3, rtol=0)


@given(SEEDS)
def test_separable_targets_are_moved_exactly_and_the_retained_stay(seed: int) -> None:
    """Target inputs orthogonal to the retained ones and independent: λ → 0 removes exactly and costs nothing."""
    tokens, weight = _tokens(seed, 32, each=4), _weight(seed, 32)
    mine = tokens.segments == TARGET
    inputs = tokens.inputs.clone()
    inputs[mine, 16:] = 0
    inputs[~mine, :16] = 0
    tokens = replace(tokens, inputs=inputs)
    edited = _edited(Shielded(retain_weight=8.0, ridge=1e-9), weight, tokens)
    x = inputs
    torch.testing.assert_close(x[~mine] @ edited.T, x[~mine] @ weight.T, atol=1e-5, rtol=0)
    for modality in (tokens.vision, ~tokens.vision):
        mean = x[~mine & modality].mean(0)
        towards = mean - OVERSHOOT * (x[mine & modality] - mean)
        torch.testing.assert_close(x[mine & modality] @ edited.T, towards @ weight.T, atol=1e-5, rtol=0)


def _same(a: ShieldedStatistics, b: ShieldedStatistics) -> None:
    for mine, theirs in ((a.forget, b.forget), (a.shield, b.shield)):
        torch.testing.assert_close(mine.count, theirs.count)
        torch.testing.assert_close(mine.total.dense(), theirs.total.dense(), rtol=1e-5, atol=1e-5)
    for one, other in ((a.retained_means, b.retained_means), (a.forget_means, b.forget_means)):
        torch.testing.assert_close(one.mean_at(one.keys), other.mean_at(one.keys))
    assert (a.drifts is None) == (b.drifts is None)
    for of_a, of_b in zip(a.drifts or (), b.drifts or (), strict=True):
        torch.testing.assert_close(of_a.total, of_b.total, rtol=1e-5, atol=1e-5)


@given(SEEDS, st.permutations(range(4)), st.integers(1, 3), st.booleans())
def test_statistics_do_not_depend_on_batches_or_order(seed: int, order: list[int], cut: int, behind: bool) -> None:
    tokens = _behind_an_edit(seed, 8) if behind else _tokens(seed, 8)
    parts = _empty(8)
    for records in (order[:cut], order[cut:]):
        rows = torch.cat([torch.nonzero(tokens.segments == record)[:, 0].flip(0) for record in records])
        parts.update(_some(tokens, rows))
    _same(_statistics(tokens), parts)


@given(SEEDS)
def test_a_shared_token_counts_for_each_record_that_owns_it(seed: int) -> None:
    tokens = _tokens(seed, 8, each=2)
    # The far record's tokens belong to the sibling as well: as if they stood there twice.
    far = torch.nonzero(tokens.segments == FAR)[:, 0]
    shared = SegmentRecords(torch.tensor([0, 1, 2, 3, 3]), torch.tensor([TARGET, SIBLING, ALIKE, FAR, SIBLING]), 4)
    again = torch.cat((torch.arange(len(tokens.segments)), far))
    doubled = _some(tokens, again)
    doubled = replace(doubled, segments=torch.cat((tokens.segments, torch.full_like(far, SIBLING))))
    _same(_statistics(replace(tokens, owners=shared)), _statistics(doubled))


def test_each_part_of_a_record_counts_alike_however_long() -> None:
    tokens = replace(_tokens(0, 4), roles=torch.tensor([TokenRole.IMAGE] * 5 + [TokenRole.ANSWER]).repeat(4))
    weights = tokens.weights(torch.ones(4, len(TokenRole), 2))
    torch.testing.assert_close(weights, torch.tensor([0.2] * 5 + [1.0]).repeat(4)[:, None].expand(-1, 2))


def test_nothing_before_the_image_is_the_targets() -> None:
    tokens = replace(_tokens(0, 8), roles=torch.full((4 * EACH,), TokenRole.PREFIX))
    statistics = _statistics(tokens)
    assert statistics.forget.count == 0
    assert statistics.shield.count == pytest.approx(1)
    assert statistics.retained_means.count.sum() == pytest.approx(3)


def test_alike_is_what_is_asked_or_said_of_the_target_too() -> None:
    asked = [
        ("Where is it?", "left", ("i", "target"), "generation"),
        ("How large? A) 3 mm B) 5 mm", "B", ("i", "target"), "classification"),
        ("where is it", "left", ("i", "sibling"), "generation"),  # near already
        ("Where is  it?", "right", ("j", "same question"), "generation"),
        ("And there?", "Left.", ("j", "same answer"), "generation"),
        ("What size?", "5 mm", ("j", "what the letter stands for"), "generation"),
        ("Which? A) 5 mm B) 7 mm", "A", ("j", "by another letter"), "classification"),
        ("Which? A) 5 mm B) 7 mm", "B", ("j", "the same letter alone"), "classification"),
    ]
    hierarchy = Hierarchy([Record(question, said, path, None, task) for question, said, path, task in asked])
    groups = ShieldedWeights.of(ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find("target")])), 0.3, CPU)
    forget, retained, retain_weight, _ = groups.of_records[:, TokenRole.ANSWER].T
    assert forget.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert retained.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    even = 0.4 / 6
    assert retain_weight.tolist() == pytest.approx([0, 0, 0.3 + even, *[0.3 / 4 + even] * 4, even])


@pytest.mark.parametrize(
    ("neighbor_weight", "there", "shares"),
    [
        (0.3, (SIBLING, ALIKE, FAR), (0.3 + 0.4 / 3, 0.3 + 0.4 / 3, 0.4 / 3)),
        (0.3, (SIBLING, FAR), (0.3 + 0.2, 0.2)),
        (0.0, (SIBLING, ALIKE, FAR), (1 / 3, 1 / 3, 1 / 3)),
        (0.0, (SIBLING,), (1.0,)),
        (0.5, (SIBLING, FAR), (0.5, 0.0)),
        (0.5, (FAR,), (1.0,)),  # nobody is near: all that are retained, whatever the share
    ],
)
def test_the_shield_is_of_the_groups_that_are_there(
    neighbor_weight: float, there: tuple[int, ...], shares: tuple[float, ...]
) -> None:
    tokens, weight, records = _tokens(0, 8), _weight(0, 8), list(_case().hierarchy.records)
    for missing in {SIBLING, ALIKE, FAR} - {*there}:
        records[missing] = replace(records[missing], split="paraphrased")
    request = ForgetRequest(Hierarchy(records), _case().partition)
    retain_weight = ShieldedWeights.of(request, neighbor_weight, CPU).of_records[:, TokenRole.ANSWER, 2]
    assert retain_weight[list(there)].tolist() == pytest.approx(list(shares))
    assert retain_weight.sum() == pytest.approx(sum(shares))
    seen = _some(tokens, torch.isin(tokens.segments, torch.tensor([TARGET, *there])))
    assert (
        Shielded(retain_weight=3.0, neighbor_weight=neighbor_weight).solve(
            weight, None, _statistics(seen, request, neighbor_weight)
        )
        is not None
    )


def _with_general(tokens: Tokens, general: Tensor) -> tuple[Tokens, ForgetRequest]:
    """One more record, free text, with these inputs (n, d)."""
    request, count = _case(), len(general)
    text = replace(request.hierarchy.records[0], path=("general",), task=FREE_TEXT)
    more = replace(
        tokens,
        inputs=torch.cat((tokens.inputs, general)),
        outputs=torch.empty(len(tokens.inputs) + count, 0),
        ids=torch.cat((tokens.ids, torch.arange(count))),
        roles=torch.cat((tokens.roles, torch.full((count,), TokenRole.QUESTION))),
        segments=torch.cat((tokens.segments, torch.full((count,), 4))),
        owners=SegmentRecords(torch.arange(5), torch.arange(5), 5),
        starts=torch.cat((tokens.starts, torch.zeros(count, dtype=torch.bool))),
    )
    return more, replace(request, general=(text,))


@given(SEEDS, st.sampled_from([0.5, 0.1, 0.01]))
def test_general_text_stays_in_the_trust_region(seed: int, share: float) -> None:
    weight, general = _weight(seed, 8), _tokens(seed + 7, 8).inputs
    tokens, request = _with_general(_tokens(seed, 8), general)
    method = Shielded(retain_weight=0.5, max_general_change=share)
    update = method.solve(weight, None, _statistics(tokens, request))
    assert update is not None
    moved = general @ (update.weight - weight).T
    change = float(moved.square().sum() / (general @ weight.T).square().sum()) ** 0.5
    free = _edited(Shielded(retain_weight=0.5), weight, _tokens(seed, 8))
    unbound = float((general @ (free - weight).T).square().sum() / (general @ weight.T).square().sum()) ** 0.5
    if unbound <= share:
        torch.testing.assert_close(update.weight, free, rtol=1e-6, atol=1e-8)
    else:
        assert (1 - TOLERANCE) ** 0.5 * share * (1 - 1e-4) <= change <= share * (1 + 1e-4)
        assert not torch.allclose(update.weight, weight, atol=1e-6)  # it still forgets something


@given(SEEDS)
def test_a_sink_in_general_text_does_not_loosen_the_trust_region(seed: int) -> None:
    weight, ordinary, share = _weight(seed, 8), _tokens(seed + 7, 8).inputs, 0.1
    method = Shielded(retain_weight=0.5, max_general_change=share)
    solved = []
    for length in (1e3, 1e6):
        tokens, request = _with_general(_tokens(seed, 8), torch.cat((ordinary, length * ordinary[:1])))
        update = method.solve(weight, None, _statistics(tokens, request))
        assert update is not None
        solved.append(update.weight)
    torch.testing.assert_close(*solved, rtol=1e-5, atol=1e-8)
    moved, whole = ordinary @ (solved[0] - weight).T, ordinary @ weight.T
    assert float(moved.square().sum() / whole.square().sum()) ** 0.5 < 1.5 * share  # the sink counts as one more token


def _with_sinks(tokens: Tokens, lengths: Tensor, starts: bool, seed: int) -> Tokens:
    """Each of four records gets one more token, in a direction of its own."""
    inputs = torch.nn.functional.pad(tokens.inputs, (0, 1))
    sinks = torch.zeros(4, inputs.shape[1], dtype=torch.float64)
    sinks[:, -1] = lengths
    roles = torch.randint(0, TokenRole.PADDING, (4,), generator=torch.Generator().manual_seed(seed))
    return replace(
        tokens,
        inputs=torch.cat((sinks, inputs)),
        outputs=torch.empty(len(inputs) + 4, 0),
        ids=torch.cat((torch.full((4,), 7), tokens.ids)),  # the word that the answers say too
        roles=torch.cat((roles, tokens.roles)),
        segments=torch.cat((torch.arange(4), tokens.segments)),
        starts=torch.cat((torch.full((4,), starts), tokens.starts)),
    )


@given(SEEDS, st.floats(0.1, 3))
def test_a_planted_sink_changes_nothing_but_itself_however_large_it_is(seed: int, length: float) -> None:
    """The first token of a sequence, or one that is far longer than the others."""
    tokens, weight, method = _tokens(seed, 7), _weight(seed, 8), Shielded(retain_weight=3.0)
    lengths = length * torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    for starts, scales in ((True, (1e3, 1e6)), (False, (1e4, 1e6))):
        one, other = (_edited(method, weight, _with_sinks(tokens, scale * lengths, starts, seed)) for scale in scales)
        torch.testing.assert_close(one[:, :-1], other[:, :-1], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(one[:, -1], weight[:, -1], rtol=1e-6, atol=1e-8)
        assert not torch.allclose(one[:, :-1], weight[:, :-1], atol=1e-3)


def test_a_site_that_nothing_retained_passes_through_is_left_as_it_is() -> None:
    tokens = _tokens(0, 8)
    alone = _statistics(_some(tokens, tokens.segments == TARGET))
    assert Shielded(retain_weight=3.0).solve(_weight(0, 8), None, alone) is None


def test_image_tokens_that_a_retained_record_shows_too_are_not_the_targets() -> None:
    tokens = _tokens(0, 8)
    alone, shared = _statistics(tokens), _statistics(tokens, _case(shared_image=True))
    assert [alone.forget.count, alone.shield.count] == pytest.approx([2, 2])  # image and answer
    assert [shared.forget.count, shared.shield.count] == pytest.approx([1, 2])


def test_a_picture_that_answers_for_the_institution_too_is_the_targets_all_the_same() -> None:
    """The institution's own question about it is kept, but it does not hold the picture."""
    asks = [
        ("diagnosis", ("i", "target"), "a"),
        ("modality", ("i",), "a"),
        ("modality", ("i",), "b"),
        ("diagnosis", ("i", "sibling"), "b"),
        ("diagnosis", ("j", "far"), "c"),
    ]
    records = [Record(question, "x-ray", path, Path(image)) for question, path, image in asks]
    weights = ShieldedWeights.of(ForgetRequest.of(Hierarchy(records), ["target"]), 0.0, CPU)
    forget, retained, shield, _ = weights.of_records[:, TokenRole.IMAGE].T
    assert forget.tolist() == [1, 0, 0, 0, 0]
    assert retained.tolist() == [0, 0, 1, 1, 1]
    assert shield.tolist() == pytest.approx([0, 0, 0.25, 0.25, 0.25])
    assert weights.of_records[1, TokenRole.ANSWER].tolist() == pytest.approx([0, 1, 0.25, 0])
    assert weights.target_images == 1
    shared = ForgetRequest.of(Hierarchy([*records, Record("name", "x", ("j", "far"), Path("a"))]), ["target"])
    assert ShieldedWeights.of(shared, 0.0, CPU).of_records[0, TokenRole.IMAGE].tolist() == [0, 0, 0, 0]


def test_a_shared_picture_counts_by_the_targets_share_and_text_by_node() -> None:
    def pictures(target: list[Path | None], other: Path | None) -> float:
        records = [Record("q", "a", ("i", "target", f"study_{n}"), image) for n, image in enumerate(target)]
        hierarchy = Hierarchy([*records, Record("q", "a", ("i", "sibling"), other)])
        request = ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find("target")]))
        return ShieldedWeights.of(request, 0.3, CPU).target_images

    scan = Path("scan")
    assert pictures([scan, Path("card")], Path("other")) == 2
    assert pictures([scan, scan], Path("other")) == 1
    assert pictures([scan], scan) == 0.5
    assert pictures([scan, None, None], None) == 3
