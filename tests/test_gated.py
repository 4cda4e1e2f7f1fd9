"""Theorems of gated removal, on tokens drawn at random, and the edit of the demo's model."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.record import Record, open_image
from chip.data.request import ForgetRequest, Partition
from chip.distributed import DistributedContext
from chip.errors import ChipWarning, InputError
from chip.kernels.gates import (
    balanced_openings,
    choose_gates,
    gate_units,
    output_columns,
    refit_without,
    separating_directions,
    widest_directions,
)
from chip.methods import Gated, ShieldedGated, gated_statistics, make_method
from chip.methods.apply import EditContext, default_modules
from chip.methods.base import MeasuredModule, WeightUpdate
from chip.methods.gated_connector import side_by_side
from chip.methods.gated_stand_ins import stand_in_images
from chip.methods.gated_statistics import GatedStatistics, GatedWeights, HeldTokens
from chip.methods.gated_views import ALTERATIONS, altered_images
from chip.methods.plans import edit_model
from chip.model.activations import activation_behind
from chip.model.loading import VLM, load_vlm
from chip.model.stages import by_connector
from chip.model.target_modules import Component, TargetModule, available_modules
from chip.model.tensor_names import disk_names
from chip.model.tokens import SegmentRecords, TokenRole, Tokens
from tests.families import FAMILIES, build, lacking, write_records

SEEDS = st.integers(0, 2**32 - 1)
CPU = torch.device("cpu")
PATHS = [("i", "target"), ("i", "sibling"), ("j", "far"), ("j", "farther")]
EACH, D_IN, HIDDEN, D_OUT = 12, 16, 64, 5
"""Tokens of an image, and sizes of a connector."""
MODULES = tuple(TargetModule(name, "connector", Component.CONNECTOR, None, True, False, 0) for name in ("one", "two"))


def _drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _gaps(w: Tensor, points: Tensor, others: Tensor) -> Tensor:
    return (points * w).sum(1) - (others @ w.T).amax(0)


def test_the_widest_gap_is_the_distance_to_the_convex_hull() -> None:
    others = torch.cat((torch.zeros(6, 1).double(), _drawn(0, 6, 3)), 1)  # all on one side of a plane
    center = others.mean(0)
    points = torch.stack((center + torch.tensor([2.0, 0, 0, 0]), center - torch.tensor([0.5, 0, 0, 0])))
    w = widest_directions(points, others, softness=1e-6)
    torch.testing.assert_close(w, torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(_gaps(w, points, others), torch.tensor([2.0, 0.5]).double(), atol=5e-3, rtol=0)


@settings(max_examples=8)
@given(SEEDS)
def test_no_other_direction_has_a_wider_gap(seed: int) -> None:
    points, others = _drawn(seed, 3, D_IN), _drawn(seed + 1, 40, D_IN)
    widest = _gaps(widest_directions(points, others), points, others)
    mean, centered = others.mean(0), others - others.mean(0)
    for ridge in (1e-3, 1e-1, 10.0):
        fisher = separating_directions(points, mean, centered.T @ centered / len(others), ridge)
        assert (widest >= _gaps(fisher, points, others) - 0.02).all()
    assert (widest > 0).all()  # 40 others in 16 dimensions
    assert (widest_directions(points, others, active=8) @ points.T).isfinite().all()


def test_the_cheapest_gates_are_chosen_and_none_where_one_opens_already() -> None:
    opens = torch.eye(4, dtype=torch.bool)
    opens[0, 1] = True
    possible, cost = torch.tensor([True, True, True, False]), torch.tensor([1.0, 3.0, 2.0, 0.5])
    everyone, nobody = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)

    def choose(first: Tensor, count: int = 4, budget: float = 9.0) -> tuple[list[int], list[bool]]:
        chosen, covered = choose_gates(opens, possible, cost, first, count=count, budget=budget)
        return chosen.tolist(), covered.tolist()

    assert choose(everyone) == ([0, 2, 1], [True, True, True, False])  # 1 last, as 0 opens for it too
    assert choose(everyone, budget=3.5) == choose(nobody) == ([0, 2], [True, True, True, False])
    assert choose(nobody, count=1) == ([0], [True, True, False, False])
    assert choose(nobody, budget=1.5) == ([0], [True, True, False, False])
    assert choose(torch.tensor([False, True, False, False])) == ([1, 0, 2], [True, True, True, False])


def test_gates_close_at_the_highest_response_and_open_at_their_point() -> None:
    w = torch.nn.functional.normalize(_drawn(0, 3, D_IN), dim=1)
    highest, gaps, moves = _drawn(1, 3), torch.tensor([0.1, 1.0, 9.0]).double(), torch.tensor([5.0, 1.0, 2.0]).double()
    opened = balanced_openings(gaps, moves, 2.0, 1.5)
    weight, bias = gate_units(w, highest, highest + gaps, 2.0, opened)
    slope = torch.linalg.norm(weight, dim=1)
    torch.testing.assert_close(slope * highest + bias, torch.full((3,), -2.0).double())
    torch.testing.assert_close(slope * (highest + gaps) + bias, opened)
    torch.testing.assert_close(slope, 1.5 * moves / opened)  # as large in front as behind


@settings(max_examples=8)
@given(SEEDS)
def test_what_others_can_say_too_is_fitted_without_a_loss_and_nothing_fits_better(seed: int) -> None:
    h, weight = _drawn(seed, 80, 10), _drawn(seed + 1, D_OUT, 10)
    h[:, 3] = h[:, 1] - 2 * h[:, 5] + 1
    freed = torch.zeros(10, dtype=torch.bool)
    freed[3] = True
    extended = torch.cat((h, torch.ones(80, 1)), 1)
    fitted, shift = refit_without(weight, extended.T @ extended / 80, freed, 1e-12, True)
    assert (fitted[:, 3] == 0).all()
    torch.testing.assert_close(h @ fitted.T + shift, h @ weight.T, atol=1e-6, rtol=0)
    without_bias, none = refit_without(weight, extended.T @ extended / 80, freed, 1e-12, False)
    assert (none == 0).all()

    def error(other: Tensor) -> Tensor:
        return (h @ other.T - h @ weight.T).square().sum()

    noise = 1e-3 * _drawn(seed + 2, D_OUT, 10) * ~freed
    assert error(without_bias) <= error(without_bias + noise)


@settings(max_examples=8)
@given(SEEDS, st.floats(0.05, 2))
def test_output_columns_are_the_best_of_their_size(seed: int, largest: float) -> None:
    moves, activations = _drawn(seed, 20, D_OUT), _drawn(seed + 1, 20, 4).abs()
    free = output_columns(moves, activations, 1e-12, 1e9)
    torch.testing.assert_close(free, torch.linalg.lstsq(activations, moves).solution.T)
    small = output_columns(moves, activations, 1e-12, largest)
    assert torch.linalg.norm(small) <= largest * (1 + 1e-9)
    noise = _drawn(seed + 2, *small.shape)
    other = small + 1e-2 * noise
    other *= min(1.0, float(torch.linalg.norm(small) / torch.linalg.norm(other)))

    def error(columns: Tensor) -> Tensor:
        return (moves - activations @ columns.T).square().sum()

    assert error(small) <= error(other) + 1e-9


class _Connector:
    """Two maps with an activation between, measured as the pass would do it."""

    def __init__(self, seed: int, shared: bool = False, method: Gated | None = None) -> None:
        self.method = method or Gated(views=0, max_change=1e9)
        self.w1, self.b1 = _drawn(seed, HIDDEN, D_IN) / 4, _drawn(seed + 1, HIDDEN) / 4
        self.w2, self.b2 = _drawn(seed + 2, D_OUT, HIDDEN) / 8, _drawn(seed + 3, D_OUT)
        self.w2[:, 40:] *= 1e-3  # there are idle units
        self.x = _drawn(seed + 4, EACH * len(PATHS), D_IN)
        if shared:
            self.x[:EACH] = self.x[EACH : 2 * EACH]

    @property
    def request(self) -> ForgetRequest:
        records = [Record("q?", "a", path, str(path).encode()) for path in PATHS]
        hierarchy = Hierarchy(records)
        return ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find("target")]))

    @property
    def target(self) -> Tensor:
        return self.x[:EACH]

    @property
    def retained(self) -> Tensor:
        return self.x[EACH:]

    def hidden(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x @ self.w1.T + self.b1)

    def output(self, x: Tensor, updates: dict[TargetModule, WeightUpdate] | None = None) -> Tensor:
        if updates is None:
            return self.hidden(x) @ self.w2.T + self.b2
        first, second = (updates[module] for module in MODULES)
        assert second.bias is not None
        return self.hidden_by(first, x) @ second.weight.T + second.bias

    def hidden_by(self, first: WeightUpdate, x: Tensor) -> Tensor:
        assert first.bias is not None
        return nn.functional.gelu(x @ first.weight.T + first.bias)

    def measured(
        self,
        order: Sequence[int] = range(len(PATHS)),
        activation: Callable[[Tensor], Tensor] = nn.functional.gelu,
        distributed: DistributedContext | None = None,
    ) -> dict[TargetModule, MeasuredModule]:
        weights = self.method.record_weights(self.request, CPU)
        inputs = dict(zip(MODULES, (self.x, self.hidden(self.x)), strict=True))
        seen = {module: GatedStatistics(weights, x.shape[1]) for module, x in inputs.items()}
        looks: list[dict[TargetModule, Any]] = [dict(seen)]
        for look in range(self.method.needs.looks):
            if look:
                again = self.method.look_again(looks[-1])
                looks.append({module: again[module]() for module in MODULES})
            for module, x in inputs.items():
                for record in order:
                    looks[-1][module].update(_tokens(x[record * EACH : (record + 1) * EACH], record))
                looks[-1][module].merge(distributed or DistributedContext())
        last = dict(zip(MODULES, ((self.w1, self.b1), (self.w2, self.b2)), strict=True))
        return {
            module: MeasuredModule(*last[module], looks[-1][module], activation if module is MODULES[0] else None)
            for module in MODULES
        }

    def solve(self, order: Sequence[int] = range(len(PATHS))) -> dict[TargetModule, WeightUpdate]:
        return dict(self.method.solve_stage(self.measured(order)))


def _new_units(connector: _Connector, first: WeightUpdate) -> Tensor:
    """(h,) bool: hidden units that are none of before, at any place."""
    known: Tensor = (first.weight[:, None] == connector.w1).all(2).any(1)
    return ~known


def _tokens(x: Tensor, record: int) -> Tokens:
    zeros = torch.zeros(len(x), dtype=torch.int64)
    return Tokens(
        x,
        None,
        ids=torch.arange(len(x)),
        roles=torch.full_like(zeros, TokenRole.IMAGE),
        segments=zeros,
        owners=SegmentRecords(torch.tensor([0]), torch.tensor([record]), 1),
        starts=zeros.bool(),
    )


@settings(max_examples=3)
@given(SEEDS)
def test_gates_stay_closed_for_all_that_is_retained_and_open_for_the_target(seed: int) -> None:
    connector = _Connector(seed)
    first = connector.solve()[MODULES[0]]
    assert first.bias is not None
    changed = _new_units(connector, first)
    assert 0 < int(changed.sum()) <= HIDDEN // 4
    before = connector.x @ first.weight[changed].T + first.bias[changed]
    assert (before[EACH:] <= -connector.method.closed + 1e-6).all()
    assert (before[:EACH].amax(0) > 0).all()
    assert (before[:EACH].amax(1) > 0).all()


@settings(max_examples=3)
@given(SEEDS)
def test_retained_outputs_stay_and_the_targets_go_to_the_stand_ins_at_their_place(seed: int) -> None:
    connector = _Connector(seed, method=Gated(views=0, closed=6.0, max_change=1e9))  # far below 0 GELU is 0
    updates = connector.solve()
    before, after = connector.output(connector.retained), connector.output(connector.retained, updates)
    spread = torch.linalg.norm(before - before.mean(0))
    assert torch.linalg.norm(after - before) < 2e-3 * spread  # the idle units gave so much
    stand_in = before[:EACH]  # the sibling's: all answers are alike
    moved = connector.output(connector.target, updates)
    first, second = (updates[module] for module in MODULES)
    gates = _new_units(connector, first)
    activations = connector.hidden_by(first, connector.target)[:, gates]
    wanted = stand_in - (moved - activations @ second.weight[:, gates].T)
    best = wanted - activations @ torch.linalg.lstsq(activations, wanted).solution
    remaining = torch.linalg.norm(moved - stand_in)
    assert remaining < 0.5 * torch.linalg.norm(connector.output(connector.target) - stand_in)
    assert remaining < 1.2 * torch.linalg.norm(best) + 0.02 * torch.linalg.norm(wanted)  # it has a ridge


def test_the_stand_in_is_the_image_that_shares_the_fewest_answers_and_is_asked_about_as_much() -> None:
    answers = {"target": "abc", "sibling": "abx", "far": "xyz", "farther": "x"}
    records = [
        Record(f"{n}?", said, path, path[1].encode()) for path in PATHS for n, said in enumerate(answers[path[1]])
    ]
    records.append(Record("where?", "a", ("i",), b"target"))  # of the institution, which shows the target's picture
    request = ForgetRequest.of(Hierarchy(records), ["target"])
    assert stand_in_images(request, {b"target": 0}) == {b"target": b"far"}
    alike = [replace(record, answer="a") for record in records]
    assert stand_in_images(ForgetRequest.of(Hierarchy(alike), ["target"]), {b"target": 0}) == {b"target": b"sibling"}
    alone = [record if record.path[1:] == ("target",) else replace(record, image=None) for record in records]
    assert stand_in_images(ForgetRequest.of(Hierarchy(alone), ["target"]), {b"target": 0}) == {}


def test_places_that_the_stand_in_has_not_go_to_the_mean() -> None:
    connector = _Connector(0)
    weights = connector.method.record_weights(connector.request, CPU)
    seen = GatedStatistics(weights, D_IN)
    for record, count in enumerate((EACH, 5, EACH, EACH)):
        seen.update(_tokens(connector.x[record * EACH :][:count], record))
    others = connector.x.view(-1, EACH, D_IN)[2:]
    torch.testing.assert_close(seen.destinations, torch.cat((connector.x[EACH : EACH + 5], others[:, 5:].mean(0))))


@settings(max_examples=3)
@given(SEEDS, st.permutations(range(len(PATHS))))
def test_the_order_of_batches_does_not_matter(seed: int, order: list[int]) -> None:
    connector = _Connector(seed)
    for one, other in zip(connector.solve().values(), connector.solve(order).values(), strict=True):
        torch.testing.assert_close(one.weight, other.weight, atol=1e-6, rtol=1e-6)


class Twin(DistributedContext):
    """One of two processes, which are threads."""

    world_size = 2

    def __init__(self, rank: int, values: list[Tensor], barrier: threading.Barrier) -> None:
        self.rank, self._values, self._barrier = rank, values, barrier

    def all_reduce_(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            first, second = self._exchange(tensor.clone())
            tensor.copy_(first + second)

    def union(self, keys: Tensor) -> Tensor:
        together: Tensor = torch.unique(torch.cat(self._exchange(keys)))
        return together

    def _exchange(self, value: Tensor) -> tuple[Tensor, Tensor]:
        self._values[self.rank] = value
        self._barrier.wait(30)
        first, second = self._values
        self._barrier.wait(30)
        return first, second


def test_several_processes_find_what_one_does() -> None:
    connector, barrier = _Connector(3), threading.Barrier(2)
    twins = [Twin(rank, values, barrier) for values in [[torch.empty(0)] * 2] for rank in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        shares = [
            threads.submit(connector.measured, order, distributed=twin)
            for order, twin in zip(([0, 2], [3, 1]), twins, strict=True)
        ]
        solved = [connector.method.solve_stage(share.result()) for share in shares]
    for module, alone in connector.solve().items():
        for one in solved:
            torch.testing.assert_close(one[module].weight, alone.weight, atol=1e-6, rtol=1e-6)


def test_weights_stay_within_the_change_that_is_allowed() -> None:
    connector = _Connector(0, method=Gated(views=0, max_change=0.5))
    with pytest.warns(ChipWarning, match=r"one: \d+ of 12 tokens of the target's image meet a gate; 0 are like"):
        updates = connector.solve()
    for module, old in zip(MODULES, (connector.w1, connector.w2), strict=True):
        new = updates[module].weight
        columns = new if module is MODULES[0] else new.T
        kept = old if module is MODULES[0] else old.T
        gates = ~torch.isclose(columns[:, None], kept, atol=0.1).all(2).any(1)
        assert torch.linalg.norm(columns[gates]) <= 0.51 * torch.linalg.norm(old) + torch.linalg.norm(kept[40:])


def test_what_is_like_the_retained_gets_no_gate_and_that_is_said() -> None:
    with pytest.warns(ChipWarning, match="nothing of the target's image can be told from what is retained"):
        assert _Connector(0, shared=True).solve() == {}


def test_gates_of_an_earlier_edit_are_not_used_again() -> None:
    connector = _Connector(1)
    first, second = (connector.solve()[module] for module in MODULES)
    gates = first.weight[_new_units(connector, first)]
    assert first.bias is not None
    assert second.bias is not None
    connector.w1, connector.b1, connector.w2, connector.b2 = first.weight, first.bias, second.weight, second.bias
    connector.x = torch.cat((_drawn(77, EACH, D_IN), connector.retained))
    again = connector.solve()[MODULES[0]]
    assert _new_units(connector, again).any()
    assert (gates[:, None] == again.weight).all(2).any(1).all()


def test_another_map_between_or_an_activation_that_is_still_open_is_refused() -> None:
    connector = _Connector(0)
    with pytest.raises(InputError, match="not two linear maps with an activation between"):
        connector.method.solve_stage(connector.measured(activation=torch.relu))
    with pytest.raises(InputError, match=r"closed=0\.5: the connector's activation is not yet closed there"):
        replace(connector.method, closed=0.5).solve_stage(connector.measured())
    measured = connector.measured()
    with pytest.raises(InputError, match="one: gates need two linear maps"):
        connector.method.solve_stage({MODULES[0]: measured[MODULES[0]]})


def test_held_tokens_are_each_held_once() -> None:
    held, x = HeldTokens(2, CPU), torch.arange(8.0).view(4, 2)
    held.update(x[2:], torch.tensor([5, 1]))
    held.update(x[:3], torch.tensor([3, 3, 5]))
    assert held.keys.tolist() == [1, 3, 5]
    assert held.inputs.tolist() == [[6, 7], [0, 1], [4, 5]]


def test_more_tokens_than_can_be_told_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_statistics, "MOST_TOKENS", EACH - 1)
    with pytest.raises(InputError, match="more than 11 image tokens of the target; give fewer --views"):
        _Connector(0).measured()


def test_freed_units_come_to_lieside_by_side() -> None:
    freed = torch.zeros(96, dtype=torch.bool)
    freed[[3, 33, 34, 36, 90]] = True
    order, place = side_by_side(freed)
    assert place.tolist() == [32, 33, 34, 35, 36]
    assert sorted(order.tolist()) == list(range(96))
    assert set(order[place].tolist()) == {3, 33, 34, 36, 90}
    assert int((order != torch.arange(96)).sum()) == 4  # two change places with two


def test_altered_images_have_the_pictures_size_and_are_the_same_each_time(hierarchy: Hierarchy) -> None:
    record = next(record for record in hierarchy.records if record.image is not None)
    picture, altered = open_image(record), altered_images(record, len(ALTERATIONS))
    assert picture is not None
    assert len(set(altered)) == len(ALTERATIONS)
    assert altered == altered_images(record, len(ALTERATIONS))
    assert altered_images(record, 2) == altered[:2]
    for file in altered:
        image = open_image(Record("", "", (), file))
        assert image is not None
        assert image.size == picture.size


GATED_FAMILIES = {
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "llava_onevision", "internvl"),
}
QUICK = ("qwen2_5_vl", "gemma3")


@pytest.mark.parametrize("family", FAMILIES)
def test_connectors_of_two_maps_are_found(family: str) -> None:
    model = FAMILIES[family]()
    stages = by_connector([module for module in available_modules(model) if module.component is Component.CONNECTOR])
    for stage in stages:
        behind = [activation_behind(model, module) for module in stage.target_modules]
        if family in GATED_FAMILIES:
            assert len(behind) == 2
            assert behind[0] is not None
            torch.testing.assert_close(behind[0](torch.tensor([-9.0, 9.0])), torch.tensor([0.0, 9.0]))
            assert behind[1] is None
        else:
            assert behind == [None]


@pytest.mark.parametrize(
    "family", [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
)
def test_connectors_of_every_family_are_edited_or_refused(family: str, tmp_path: Path) -> None:
    if lacking(family):
        pytest.skip(f"{lacking(family)} is missing")
    source = Checkpoint.open(build(tmp_path / family, family, dtype=torch.float32))
    hierarchy = Hierarchy(read_records(write_records(tmp_path)))
    request, vlm = ForgetRequest.of(hierarchy, ["patient_2"]), load_vlm(source.folder, "cpu")
    method = Gated(views=1)
    modules = default_modules(vlm, method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChipWarning)
        if family in GATED_FAMILIES:
            patch = edit_model(EditContext(vlm, source), method, request, modules)
            expected = {disk for module in modules for disk in disk_names(source, module.parameter_names).values()}
            assert set(patch.tensors) == expected
            assert all(tensor.isfinite().all() for tensor in patch.tensors.values())
        else:
            with pytest.raises(InputError, match="gates need two linear maps with an activation between"):
                edit_model(EditContext(vlm, source), method, request, modules)


@pytest.fixture(scope="module")
def forget_request(hierarchy: Hierarchy) -> ForgetRequest:
    """Of the demo one trained record for each image."""
    trained = [record for record in hierarchy.records if not record.held_out]
    few = Hierarchy(list({record.image: record for record in trained}.values()))
    return ForgetRequest(few, Partition.of(few, [few.find("patient_17")]))


def test_the_demos_connector_is_edited_and_nothing_else(
    vlm: VLM, hospital: Path, forget_request: ForgetRequest
) -> None:
    before = {name: parameter.clone() for name, parameter in vlm.model.named_parameters()}
    method = Gated(views=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChipWarning)
        context = EditContext(vlm, Checkpoint.open(hospital / "ckpt"))
        patch = edit_model(context, method, forget_request, default_modules(vlm, method))
    changed = {name for name, parameter in vlm.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {f"model.multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    assert all(patch.relative_change[name] < 2 for name, value in patch.tensors.items() if value.dim() > 1)


def test_views_of_the_target_pass_behind_the_records(forget_request: ForgetRequest) -> None:
    method = Gated(views=2)
    extra = method.extra_records(forget_request)
    weights = method.record_weights(forget_request, CPU)
    images = {forget_request.records[i].image for i in forget_request.partition.forget}
    assert len(extra) == 2 * len(images)
    assert len(weights.image) == len(forget_request.records) + len(extra) == len(weights.retained)
    assert weights.originals == len(images)
    assert weights.image[len(forget_request.records) :].tolist() == list(range(len(images), 3 * len(images)))
    assert not (weights.retained.bool() & (weights.image >= 0)).any()
    assert isinstance(weights, GatedWeights)


def test_settings_go_to_the_step_that_has_them() -> None:
    method = make_method("shielded+gated", {"retain_weight": 96.0, "closed": 4.0})
    assert isinstance(method, ShieldedGated)
    shielded, gated = method.steps
    assert (shielded.name, gated.name) == ("shielded", "gated")
    assert shielded == make_method("shielded", {"retain_weight": 96.0})
    assert gated == make_method("gated", {"closed": 4.0})
    assert ShieldedGated().search is not None
    assert method.search is None


def test_gates_without_a_connector_are_refused(vlm: VLM, hospital: Path, forget_request: ForgetRequest) -> None:
    modules = default_modules(vlm, Gated(), ["down"], "0")
    with pytest.raises(InputError, match="method gated edits none of these modules"):
        edit_model(EditContext(vlm, Checkpoint.open(hospital / "ckpt")), Gated(), forget_request, modules)
