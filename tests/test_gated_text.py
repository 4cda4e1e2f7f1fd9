"""Theorems of gates in the text model, on tokens drawn at random, and the edit of the demo's model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
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
from chip.data.keep import text_record
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.errors import ChipWarning, InputError
from chip.kernels.gates import constant_map, detectors
from chip.methods import GatedText, ShieldedGatedText, gated_text, make_method
from chip.methods.apply import EditContext, default_modules
from chip.methods.base import MeasuredModule, WeightUpdate
from chip.methods.gated_text_tokens import (
    MOST_BEHIND,
    PLACES,
    WORDS,
    SortedTokens,
    TextWeights,
    rare_behind,
    words_of_nodes,
)
from chip.methods.plans import edit_model
from chip.model.activations import activation_behind
from chip.model.loading import VLM
from chip.model.stages import by_mlp
from chip.model.target_modules import Component, TargetModule, available_modules, parse_layers
from chip.model.tokens import SegmentRecords, TokenRole, Tokens
from tests.families import FAMILIES
from tests.test_gated import Twin

SEEDS = st.integers(0, 2**32 - 1)
CPU = torch.device("cpu")
PATHS = [("i", "target"), ("i", "sibling"), ("j", "far"), ("j", "farther")]
EACH, WIDTH, HIDDEN = 10, 48, 160
"""Tokens of a record, of which the first is the prefix and the last two are the answer; sizes of an MLP."""
MODULES = tuple(TargetModule(name, name, Component.TEXT, 0, False) for name in ("gate", "up", "down"))


def _drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _request(image: bytes | None = None, others: bytes | None = None) -> ForgetRequest:
    records = [Record("q?", "a", path, image if path[1] == "target" else others) for path in PATHS]
    return ForgetRequest.of(Hierarchy(records), ["target"])


@settings(max_examples=5)
@given(SEEDS, st.sampled_from((0, 4)))
def test_a_detector_is_the_ridge_regression_of_what_it_is_to_give(seed: int, near: int) -> None:
    points, others, nearest = _drawn(seed, 3, 6), _drawn(seed + 1, 40, 6) + 1, _drawn(seed + 2, 3, near, 6)
    moment, mean, n = others.T @ others / 40, others.mean(0), 40
    found = detectors(points, mean, moment, nearest, ridge=1e-3, own=5.0, others=-8.0)
    ridge = torch.eye(6).double() * (1e-3 * moment.diagonal().mean()).sqrt()
    for x, hard, g in zip(points, nearest, found, strict=True):
        rows = torch.cat((x[None], others / n**0.5, hard / max(near, 1) ** 0.5, ridge))
        wanted = [5.0, *[-8 / n**0.5] * n, *[-8 / max(near, 1) ** 0.5] * near, *[0.0] * 6]
        best = torch.linalg.lstsq(rows, torch.tensor(wanted).double()[:, None]).solution[:, 0]
        torch.testing.assert_close(g, best, atol=1e-6, rtol=1e-6)
    extended = torch.cat((others, torch.ones(40, 1).double()), 1)  # what is constant comes out of the inputs
    one = constant_map(extended[:2], extended.mean(0), extended.T @ extended / 40, 1e-9)
    torch.testing.assert_close(extended @ one, torch.ones(40).double(), atol=1e-6, rtol=0)


def _tokens(record: int, x: Tensor, outputs: Tensor) -> Tokens:
    roles = torch.full((EACH,), TokenRole.QUESTION)
    roles[0], roles[-2:] = TokenRole.PREFIX, TokenRole.ANSWER
    index = torch.arange(EACH)
    owners = SegmentRecords(torch.tensor([0]), torch.tensor([record]), 1)
    return Tokens(x, outputs, index + 3, roles, torch.zeros_like(index), owners, index == 0)


def test_a_question_is_counted_from_its_start_wherever_its_tokens_stand() -> None:
    weights = TextWeights.of(_request(), CPU)
    x = torch.zeros(EACH, 1)
    alone = SortedTokens.of(_tokens(0, x, x), weights)
    assert alone.places[1:].tolist() == list(range(EACH - 1))
    assert alone.forgotten.tolist() == [0, *[1] * (EACH - 2), 0]  # the answer's first, and no more of it
    assert (alone.keys[1:9] % WORDS).tolist() == list(range(4, 12))
    assert (alone.keys[1:9] // WORDS % PLACES).tolist() == list(range(8))


def _packed() -> Tokens:
    """Two records that share what they begin with: the prefix 0 and the words 1 2; the rest each has for itself."""
    roles = [TokenRole.PREFIX, *[TokenRole.QUESTION] * 4, TokenRole.ANSWER, TokenRole.QUESTION, *[TokenRole.ANSWER] * 2]
    owners = SegmentRecords(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 4, 0, 4]), 3)
    segments, start = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]), torch.arange(9) == 0
    return Tokens(torch.zeros(9, 1), None, torch.arange(9), torch.tensor(roles), segments, owners, start)


def test_records_that_share_a_row_are_seen_as_if_alone() -> None:
    two = ForgetRequest.of(Hierarchy([Record("q", a, path, None) for a in "ab" for path in PATHS]), ["target"])
    together = SortedTokens.of(_packed(), TextWeights.of(two, CPU))
    assert together.places[1:].tolist() == [0, 1, 2, 3, 4, 2, 3, 4]
    assert together.forgotten.tolist() == [0, 2, 2, 1, 1, 1, 1, 1, 0]
    words = words_of_nodes(_packed(), torch.arange(9) > 1, torch.tensor([7, -1, -1, -1, 3]))
    assert words.tolist() == [
        node * WORDS + word for node, ids in ((3, (2, 6, 7, 8)), (7, (2, 3, 4, 5))) for word in ids
    ]


def test_the_stand_in_is_who_shares_the_fewest_answers_and_is_asked_about_as_much() -> None:
    answers = {"target": "abc", "sibling": "abx", "far": "xyz", "farther": "x"}
    records = [Record(f"{n}?", said, path, None) for path in PATHS for n, said in enumerate(answers[path[1]])]
    request = ForgetRequest.of(Hierarchy(records), ["target"])
    weights = TextWeights.of(request, CPU)
    shown = {request.records[i].path[1] for i in (weights.stand_in >= 0).nonzero()[:, 0].tolist()}
    assert shown == {"far"}
    assert set(weights.stand_in[weights.stand_in >= 0].tolist()) == {int(weights.stand_in_of)}
    whole = TextWeights.of(ForgetRequest.of(Hierarchy(records), ["i"]), CPU)  # `j` is the only other institution
    assert {request.records[i].path[0] for i in (whole.stand_in >= 0).nonzero()[:, 0].tolist()} == {"j"}
    shallow = [
        Record(record.question, record.answer, record.path[: 1 + (n < 3)], None) for n, record in enumerate(records)
    ]
    together = TextWeights.of(ForgetRequest.of(Hierarchy(shallow), ["target"]), CPU)  # nobody else is at its level
    assert (together.stand_in[3:] == 0).all()


def test_rare_words_are_counted_to_the_next_common_one() -> None:
    assert rare_behind(_packed(), torch.tensor([3, 6])).tolist()[1:5] == [1, 0, 0, 0]
    assert rare_behind(_packed(), torch.tensor([4])).tolist()[1:4] == [2, 1, 0]  # of 3, and of 6 alone: the fewest
    assert int(rare_behind(_packed(), torch.tensor([], dtype=torch.int64)).amax()) < MOST_BEHIND


class _Mlp:
    """A gated MLP in its layer, measured as the pass would do it."""

    def __init__(self, seed: int, method: GatedText | None = None, request: ForgetRequest | None = None) -> None:
        self.request = request or _request()
        self.method = method or GatedText(max_change=1e9, text_units=0.1)
        self.gate, self.up = _drawn(seed, HIDDEN, WIDTH) / 7, _drawn(seed + 1, HIDDEN, WIDTH) / 7
        self.down = _drawn(seed + 2, WIDTH, HIDDEN) / 12
        self.down[:, 100:] *= 1e-3  # there are idle units
        x = _drawn(seed + 4, EACH * len(PATHS), WIDTH)
        x[:, 0] += 6
        self.x = x / x.norm(dim=1, keepdim=True) * WIDTH**0.5  # as a norm leaves them
        self.residual = _drawn(seed + 5, EACH * len(PATHS), WIDTH)

    def hidden(self, updates: dict[TargetModule, WeightUpdate] | None = None) -> Tensor:
        gate, up = (self.gate, self.up) if updates is None else (updates[module].weight for module in MODULES[:2])
        hidden: Tensor = nn.functional.silu(self.x @ gate.T) * (self.x @ up.T)
        return hidden

    def output(self, updates: dict[TargetModule, WeightUpdate] | None = None) -> Tensor:
        down = self.down if updates is None else updates[MODULES[2]].weight
        output: Tensor = self.residual + self.hidden(updates) @ down.T
        return output

    def measured(
        self, order: Sequence[int] = range(len(PATHS)), distributed: DistributedContext | None = None
    ) -> dict[TargetModule, MeasuredModule]:
        weights, seen = self.method.record_weights(self.request, CPU), dict[TargetModule, Any]()
        inputs, outputs = (self.x, self.x, self.hidden()), (self.x, self.x, self.output())
        for look in range(self.method.needs.looks):
            again = self.method.look_again(seen) if look else {}
            for module, x, y in zip(MODULES, inputs, outputs, strict=True):
                made = again[module]() if look else self.method.statistics_of(module, weights, x.shape[1], WIDTH)
                for record in order:
                    own = slice(record * EACH, (record + 1) * EACH)
                    made.update(_tokens(record, x[own], y[own]))
                made.merge(distributed or DistributedContext())
                seen[module] = made
        maps = zip(MODULES, (self.gate, self.up, self.down), (nn.functional.silu, None, None), strict=True)
        return {module: MeasuredModule(weight, None, seen[module], behind) for module, weight, behind in maps}

    def solve(self, order: Sequence[int] = range(len(PATHS))) -> dict[TargetModule, WeightUpdate]:
        return dict(self.method.solve_stage(self.measured(order)))


def _gates(mlp: _Mlp, updates: dict[TargetModule, WeightUpdate]) -> Tensor:
    """(h,) bool: hidden units that are none of before, at any place."""
    known: Tensor = (updates[MODULES[0]].weight[:, None] == mlp.gate).all(2).any(1)
    return ~known


@settings(max_examples=4)
@given(SEEDS)
def test_gates_stay_closed_for_all_that_is_retained_and_the_target_arrives(seed: int) -> None:
    mlp = _Mlp(seed)
    updates = mlp.solve()
    gates, own = _gates(mlp, updates), slice(1, EACH - 1)
    assert 0 < int(gates.sum()) <= HIDDEN // 10
    responses = mlp.x @ updates[MODULES[0]].weight[gates].T
    assert (responses[EACH:] <= -mlp.method.closed + 1e-6).all()
    assert (responses[own].amax(0) > 0).all()
    # What is retained moves by the leak of closed gates, and by what the freed units gave.
    before, after = mlp.output(), mlp.output(updates)
    columns = updates[MODULES[2]].weight[:, gates]
    leak = mlp.hidden(updates)[:, gates] @ columns.T
    assert torch.linalg.norm((after - before - leak)[EACH:]) < 0.01 * torch.linalg.norm((before - mlp.residual)[EACH:])
    assert (leak[EACH:].norm(dim=1) <= 0.2 * columns.norm(dim=0).sum()).all()
    # The target's tokens go where its stand-in's are, at their place of the question: all answer alike, so a sibling's.
    means, target = before.view(-1, EACH, WIDTH)[1][own], (responses[own] >= 0.5).any(1)
    assert (after[own] - means)[target].norm() < 0.2 * (before[own] - means)[target].norm()


@settings(max_examples=3)
@given(SEEDS, st.permutations(range(len(PATHS))))
def test_the_order_of_batches_does_not_matter(seed: int, order: list[int]) -> None:
    mlp = _Mlp(seed)
    for one, other in zip(mlp.solve().values(), mlp.solve(order).values(), strict=True):
        torch.testing.assert_close(one.weight, other.weight, atol=1e-6, rtol=1e-6)


def test_several_processes_find_what_one_does() -> None:
    mlp, barrier, values = _Mlp(3), threading.Barrier(2), [torch.empty(0)] * 2
    with ThreadPoolExecutor(2) as threads:
        shares = [
            threads.submit(mlp.measured, order, Twin(rank, values, barrier))
            for rank, order in enumerate(([0, 2], [3, 1]))
        ]
        solved = [mlp.method.solve_stage(share.result()) for share in shares]
    for module, alone in mlp.solve().items():
        for one in solved:
            torch.testing.assert_close(one[module].weight, alone.weight, atol=1e-6, rtol=1e-6)


def test_weights_stay_within_the_change_that_is_allowed() -> None:
    mlp = _Mlp(0, GatedText(max_change=0.5, text_units=0.1))
    updates = mlp.solve()
    gates = _gates(mlp, updates)
    for module, old in ((MODULES[0], mlp.gate), (MODULES[2], mlp.down.T)):
        new = updates[module].weight if module is MODULES[0] else updates[module].weight.T
        assert new[gates].norm() <= 0.5 * old.norm() * (2 if module is MODULES[0] else 1)
    assert int(gates.sum()) < int(_gates(_Mlp(0), _Mlp(0).solve()).sum())


def test_what_cannot_be_told_apart_gets_no_gate_and_what_is_no_gated_mlp_is_refused() -> None:
    mlp = _Mlp(0)
    mlp.x[:EACH] = mlp.x[EACH : 2 * EACH]
    for without in (mlp, _Mlp(0, request=_request(others=b"picture"))):  # alike; or nobody else is asked about in text
        with pytest.warns(
            ChipWarning, match="gate: no word of the target's can be told from all others, or there are no"
        ):
            assert without.solve() == {}
    measured = _Mlp(1).measured()
    gate = replace(measured[MODULES[0]], activation=nn.functional.relu)
    with pytest.raises(InputError, match="something else than gated MLPs do"):
        GatedText().solve_stage(measured | {MODULES[0]: gate})


ADDED = {
    "idefics3",
    "smolvlm",
    "paligemma",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava",
    "llava_next",
    "llava_onevision",
    "internvl",
}
"""Families whose layers add what their MLP gives as it is."""


@pytest.mark.parametrize("family", ["llava", "gemma3", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES)])
def test_layers_are_known_to_add_what_their_mlp_gives(family: str) -> None:
    model = FAMILIES[family]()
    gates = [module for module in available_modules(model) if module.kind == "gate"]
    known = [activation_behind(model, module) is not None for module in gates]
    assert known
    assert all(known) == any(known) == (family in ADDED)


@pytest.fixture(scope="module")
def forget_request(hierarchy: Hierarchy) -> ForgetRequest:
    """Of the demo some trained records, half of them without their image."""
    trained = [record for record in hierarchy.records if not record.held_out]
    one_each = list({record.path: record for record in trained}.values())[:60]
    few = [replace(record, image=record.image if n % 2 else None) for n, record in enumerate(one_each)]
    target = next(record for record in few if record.image is None)
    return ForgetRequest.of(Hierarchy(few), ["/".join(target.path[:2])])


def test_only_units_of_the_chosen_layers_change(vlm: VLM, hospital: Path, forget_request: ForgetRequest) -> None:
    before = {name: parameter.clone() for name, parameter in vlm.model.named_parameters()}
    method = GatedText()
    modules = default_modules(vlm, method)
    assert {module.layer for module in modules} == {1, 2}  # of four
    patch = edit_model(EditContext(vlm, Checkpoint.open(hospital / "ckpt")), method, forget_request, modules)
    changed = {name for name, parameter in vlm.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert changed <= {module.weight_name for module in modules}
    assert len(patch.tensors) == len(changed)
    for module in modules:
        now, old = vlm.parameter(module.weight_name), before[module.weight_name]
        units = (now != old).any(0 if module.kind == "down" else 1)
        assert int(units.sum()) <= 2 * method.text_units * len(units)  # a gate, and what stood in its place
        assert patch.relative_change.get(module.weight_name, 0) <= 2 * method.max_change


def test_a_linear_edit_and_gates_follow_each_other(vlm: VLM, hospital: Path, forget_request: ForgetRequest) -> None:
    method = make_method("shielded+gated_text", {"retain_weight": 8.0})
    modules = default_modules(vlm, method)
    request = replace(forget_request, general=(text_record("The fox ran over the hill.", "here"),))
    patch = edit_model(EditContext(vlm, Checkpoint.open(hospital / "ckpt")), method, request, modules)
    assert set(patch.target_modules) == set(modules)
    by_kind = {kind: {m.layer for m in modules if m.kind == kind} for kind in ("connector", "gate", "up", "down")}
    assert by_kind == {"connector": {None}, "gate": {1, 2}, "up": {1, 2}, "down": set(range(4))}
    assert {"retain_weight", "text_units"} <= set(patch.settings)
    assert all(vlm.parameter(module.weight_name).isfinite().all() for module in modules)


def test_names_are_the_gates_where_text_is_kept_and_else_the_linear_edit_s(
    vlm: VLM, forget_request: ForgetRequest
) -> None:
    method, records = make_method("shielded+gated_text", {}), forget_request.records
    assert isinstance(method, ShieldedGatedText)
    linear, gates = method.steps
    modules = default_modules(vlm, method)
    assert method.plan(vlm, forget_request, modules) == [(linear, forget_request)]
    kept = replace(forget_request, general=(text_record("The fox ran over the hill.", "here"),))
    (first, pictures), (second, everything) = method.plan(vlm, kept, modules)
    assert (first, second, everything) == (linear, gates, kept)
    own = kept.partition.forget
    assert list(pictures.partition.forget) == [i for i in own if records[i].image is not None] != list(own)
    assert [*pictures.partition.forget_of.values()] == [pictures.partition.forget]
    assert pictures.partition.retained == kept.partition.retained
    never_shown = kept.part(lambda record: record.image is None)
    assert method.plan(vlm, never_shown, modules) == [(linear, never_shown)]
    with pytest.warns(ChipWarning, match="left to the linear edit.*no layer with all of gate, up and down"):
        assert method.plan(vlm, kept, default_modules(vlm, method, ["connector", "down"])) == [(linear, kept)]


def test_gates_are_refused_where_layers_have_no_place_for_them(
    vlm: VLM, forget_request: ForgetRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = GatedText()
    modules = default_modules(vlm, method)
    assert method.plan(vlm, forget_request, modules) == [(method, forget_request)]
    with pytest.raises(InputError, match="its MLPs have biases; use --method shielded"):
        method.plan(vlm, forget_request, [replace(module, bias=True) for module in modules])
    monkeypatch.setattr(gated_text, "activation_behind", lambda *_: None)
    with pytest.raises(InputError, match="not known to add what a gated MLP gives"):
        method.plan(vlm, forget_request, modules)


def test_a_target_of_pictures_only_changes_nothing(vlm: VLM, hospital: Path, forget_request: ForgetRequest) -> None:
    shown = next(r for r in forget_request.records if r.image is not None)
    records = [replace(r, image=r.image or shown.image) for r in forget_request.records]
    pictures = ForgetRequest.of(Hierarchy(records), ["/".join(shown.path[:2])])
    source, method = Checkpoint.open(hospital / "ckpt"), GatedText()
    with pytest.warns(ChipWarning, match="gated_text: nothing of the target is where it edits"):
        patch = edit_model(EditContext(vlm, source), method, pictures, default_modules(vlm, method))
    assert patch.tensors == {}


def test_each_step_takes_its_own_modules(vlm: VLM) -> None:
    method = make_method("shielded+gated_text", {"retain_weight": 96.0, "closed": 4.0})
    assert isinstance(method, ShieldedGatedText)
    linear, gates = method.steps
    assert (linear.name, gates) == ("shielded", make_method("gated_text", {"closed": 4.0}))
    modules = default_modules(vlm, method)
    assert linear.select(modules) == default_modules(vlm, make_method("shielded", {}))
    assert gates.select(modules) == default_modules(vlm, gates)
    assert [stage.target_modules for stage in by_mlp(gates.select(modules))] == [
        tuple(module for module in modules if module.layer == layer and module.kind in ("gate", "up", "down"))
        for layer in (1, 2)
    ]
    assert GatedText().default_layers(30) == [6, 9, 12]
    assert {m.layer for m in default_modules(vlm, method, None, "2") if m.layer is not None} == {*parse_layers("2", 4)}
    assert not GatedText().has_work(_request(b"picture"))
    assert GatedText().has_work(_request())
