"""Which layers are edited, for models of any depth."""

from __future__ import annotations

import pytest

from chip.errors import InputError
from chip.methods import Chip, Shielded
from chip.model.loading import VLM
from chip.model.target_modules import Stage, available_modules, in_data_order, layer_range, parse_layers, select_modules


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


@pytest.mark.parametrize("text", ["27-22", "4", "0-4", "0%-0%", "120%-130%", "-1", "first", ""])
def test_layers_that_are_not_there(text: str) -> None:
    with pytest.raises(InputError, match="--layers"):
        parse_layers(text, 4)


def test_the_papers_layers_are_the_last_6_of_28_of_any_depth() -> None:
    assert layer_range(Chip.layers, 28) == range(22, 28)
    assert layer_range(Chip.layers, 4) == range(3, 4)
    assert layer_range(Shielded.layers, 28) == range(28)


def test_sites_come_in_the_order_of_data(vlm: VLM) -> None:
    target_modules = select_modules(vlm.model, ["down", "connector", "up", "gate", "o"], range(1, 3))
    assert [(module.kind, module.layer) for module in target_modules] == [
        ("connector", None),
        ("connector", None),
        *((kind, layer) for layer in (1, 2) for kind in ("o", "gate", "up", "down")),
    ]
    stages = in_data_order(target_modules)
    assert [len(stage.target_modules) for stage in stages] == [1, 1, 1, 2, 1, 1, 2, 1]
    assert stages[0] == Stage((target_modules[0],))


def test_a_site_that_is_missing_is_an_error(vlm: VLM) -> None:
    assert len(available_modules(vlm.model)) == 2 + 4 * 7
    del vlm.layers[2].mlp.up_proj
    with pytest.raises(InputError, match=r"layer 2 .*'up'"):
        select_modules(vlm.model, ["up"], range(4))
    assert select_modules(vlm.model, ["up"], range(2))
