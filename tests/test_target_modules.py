"""Which layers are edited, for models of any depth."""

from __future__ import annotations

import pytest
import torch

from chip.errors import InputError
from chip.methods import Chip, Shielded
from chip.model.loading import VLM
from chip.model.stages import Stage, in_data_order
from chip.model.target_modules import KINDS, Component, available_modules, layer_range, parse_layers, select_modules


@pytest.mark.parametrize(
    ("text", "depth", "expected"),
    [
        ("22-27", 28, range(22, 28)),
        ("3", 4, range(3, 4)),
        ("all", 5, range(5)),
        ("50%-100%", 28, range(14, 28)),
        ("0%-75%", 4, range(3)),
        ("90%-91%", 4, range(3, 4)),
    ],
)
def test_layers_are_understood(text: str, depth: int, expected: range) -> None:
    assert parse_layers(text, depth) == expected


@pytest.mark.parametrize("text", ["27-22", "4", "0-4", "0%-0%", "120%-130%", "-1", "first", "", "9" * 5000])
def test_layers_that_are_not_there(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_layers(text, 4)
    assert (caught.value.argument, caught.value.value) == ("layers", text)


def test_the_papers_layers_are_the_last_6_of_28_of_any_depth() -> None:
    assert layer_range(Chip.layers, 28) == range(22, 28)
    assert layer_range(Chip.layers, 4) == range(3, 4)
    assert layer_range(Shielded.layers, 28) == range(28)


def test_target_modules_come_in_the_order_of_data(vlm: VLM) -> None:
    target_modules = select_modules(vlm.model, ["down", "connector", "up", "gate", "o"], range(1, 3))
    assert [(module.kind, module.component, module.layer) for module in target_modules] == [
        ("connector", Component.CONNECTOR, None),
        ("connector", Component.CONNECTOR, None),
        *((kind, Component.TEXT, layer) for layer in (1, 2) for kind in ("o", "gate", "up", "down")),
    ]
    stages = in_data_order(target_modules)
    assert [len(stage.target_modules) for stage in stages] == [1, 1, 1, 2, 1, 1, 2, 1]
    assert stages[0] == Stage((target_modules[0],))


def test_modules_of_the_vision_tower_come_first_and_have_kinds_of_their_own(vlm: VLM) -> None:
    available = available_modules(vlm.model)
    components = [module.component for module in available]
    assert components == sorted(components, key=list(Component).index)
    tower = [module for module in available if module.component is Component.VISION]
    assert {module.layer for module in tower} == set(range(len(vlm.tower_layers)))
    assert {module.kind for module in tower} == {f"vision.{kind}" for kind in ("q", "k", "v", "o", "fc1", "fc2")}
    for module in tower:
        assert module.connector is None
        assert module.weight(vlm.model).dim() == 2
    stages = in_data_order(tower)
    assert {module.kind for module in stages[0].target_modules} == {"vision.q", "vision.k", "vision.v"}
    assert [len(stage.target_modules) for stage in stages] == [3, 1, 1, 1] * len(vlm.tower_layers)


def test_a_module_that_is_missing_is_an_error(vlm: VLM) -> None:
    assert sum(module.kind in KINDS for module in available_modules(vlm.model)) == 2 + 4 * 7
    del vlm.layers[2].mlp.up_proj
    missing = (
        r"target_modules='up': .*: layer 2 has no plain linear layer mlp\.up_proj \(nothing in its place\); choose"
    )
    with pytest.raises(InputError, match=missing):
        select_modules(vlm.model, ["up"], range(4))
    assert select_modules(vlm.model, ["up"], range(2))


def test_what_stands_in_the_place_of_a_module_is_said(vlm: VLM) -> None:
    mlp = vlm.layers[1].mlp
    mlp.c_proj, mlp.c_fc, mlp.up_proj = mlp.down_proj, mlp.gate_proj, torch.nn.Identity()
    del mlp.down_proj, mlp.gate_proj
    with pytest.raises(InputError, match=r"layer 1 has no plain linear layer mlp\.down_proj \(mlp\.c_proj, mlp\.c_fc"):
        select_modules(vlm.model, ["down"], range(4))
    with pytest.raises(InputError, match=r"mlp\.up_proj \(a Identity, and no linear layer\)"):
        select_modules(vlm.model, ["up"], range(4))
    mlp.experts = torch.nn.ModuleList([mlp.c_fc])
    with pytest.raises(InputError, match=r"mlp\.down_proj \(experts instead, which an edit does not reach\)"):
        select_modules(vlm.model, ["down"], range(4))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("brain", r"no such kind; there are connector, q, k, v, o, gate, up, down, vision\.q"),
        ("vision.q", "cannot be edited yet; choose among connector, q"),
        ("vision.brain", "no such kind"),
    ],
)
def test_kinds_that_cannot_be_edited_are_refused(vlm: VLM, kind: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        select_modules(vlm.model, ["down", kind], range(4))
    assert (caught.value.argument, caught.value.value) == ("target_modules", kind)
