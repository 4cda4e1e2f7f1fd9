"""Where a change lies is read from the tensors' names, and sums over it are those of the norms."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chip.checkpoint.change_map import SHADES, Place, Scale, Sum, change_map, place_of, shortest_ends
from chip.checkpoint.tensor_diff import TensorDiff


def changed(name: str, norm: float, change: float, shape: tuple[int, ...] = (2, 2)) -> TensorDiff:
    return TensorDiff(name, shape, "F32", True, change / norm if norm else math.inf, norm=norm, change=change)


def same(name: str, shape: tuple[int, ...] = (2, 2)) -> TensorDiff:
    return TensorDiff(name, shape, "F32", changed=False)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.mlp.up_proj.weight", Place("model.layers", 3, "mlp.up_proj")),
        ("model.layers.3.mlp.up_proj.bias", Place("model.layers", 3, "mlp.up_proj")),
        ("visual.blocks.31.attn.qkv.weight", Place("visual.blocks", 31, "attn.qkv")),
        ("model.layers.3.mlp.experts.17.w1.weight", Place("model.layers", 3, "mlp.experts.*.w1")),
        ("visual.merger.mlp.0.weight", Place("visual.merger.mlp", 0, "weight")),
        ("model.layers.3.scale", Place("model.layers", 3, "scale")),
        ("multi_modal_projector.linear_1.bias", Place("", None, "multi_modal_projector.linear_1")),
        ("lm_head.weight", Place("", None, "lm_head")),
        ("weight", Place("", None, "weight")),
        ("0.weight", Place("", None, "0")),
        ("tables.4", Place("", None, "tables.4")),
    ],
)
def test_a_name_says_where_its_tensor_stands(name: str, place: Place) -> None:
    assert place_of(name) == place


def test_sums_are_those_of_the_norms_of_what_changed() -> None:
    changes = change_map(
        [
            changed("m.layers.0.up_proj.weight", norm=3.0, change=0.3),
            changed("m.layers.0.up_proj.bias", norm=4.0, change=0.4, shape=(2,)),
            changed("m.layers.1.up_proj.weight", norm=12.0, change=1.2),
            same("m.layers.1.up_proj.bias", (2,)),
            same("m.layers.1.q_proj.weight"),
            same("m.layers.0.norm.weight", (2,)),
            same("other.layers.0.up_proj.weight"),
            changed("head.weight", norm=0.0, change=1.0),
            same("embed.weight"),
        ]
    )
    (grid,) = changes.grids
    tenth: Any = pytest.approx(0.1)
    whole: Any = pytest.approx(math.hypot(0.3, 0.4, 1.2) / 13)
    assert (grid.group, grid.layers) == ("m.layers", (0, 1))
    assert grid.kinds == ("q_proj", "up_proj")  # no norm, since it stayed as it was
    assert grid.cells[0, "up_proj"] == Sum(2, 2, tenth)
    assert grid.cells[1, "up_proj"] == Sum(2, 1, tenth)
    assert grid.cells[1, "q_proj"] == Sum(1, 0, 0.0)
    assert (0, "q_proj") not in grid.cells
    assert grid.by_layer == {0: Sum(3, 2, tenth), 1: Sum(3, 1, tenth)}
    assert grid.by_kind["up_proj"] == Sum(4, 3, whole)
    assert grid.total == Sum(6, 3, tenth)
    assert changes.outside == {"head": Sum(1, 1, math.inf)}


def test_kinds_stand_in_the_order_in_which_a_layer_uses_them() -> None:
    names = ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.o_proj", "self_attn.q_proj")
    (grid,) = change_map(changed(f"model.layers.0.{name}.weight", 1.0, 1.0) for name in names).grids
    assert [*grid.labels.values()] == ["q", "o", "gate", "up", "down"]


@pytest.mark.parametrize(
    ("group", "title"),
    [
        ("model.layers", "text model"),
        ("model.language_model.layers", "text model"),
        ("model.visual.blocks", "vision tower"),
        ("vision_tower.vision_model.encoder.layers", "vision tower"),
        ("visual.merger.mlp", "connector"),
        ("audio_tower.layers", "audio_tower.layers"),
    ],
)
def test_groups_have_plain_names(group: str, title: str) -> None:
    (grid,) = change_map([changed(f"{group}.0.x.weight", 1.0, 1.0)]).grids
    assert grid.title == title


def test_labels_are_short_and_apart() -> None:
    assert shortest_ends(["attn.proj", "mlp.proj", "mlp.fc1"]) == {
        "attn.proj": "attn.proj",
        "mlp.proj": "mlp.proj",
        "mlp.fc1": "fc1",
    }
    assert shortest_ends(["a.q_proj", "b.q"]) == {"a.q_proj": "q_proj", "b.q": "q"}
    assert shortest_ends(["x", "y.x"]) == {"x": "x", "y.x": "y.x"}


@given(st.lists(st.floats(0, allow_nan=False), max_size=6))
def test_more_change_never_has_a_lighter_shade(changes: list[float]) -> None:
    scale = Scale.over(changes)
    shades = [scale.shade(change) for change in sorted(changes)]
    assert shades == sorted(shades)
    assert all(1 <= shade <= SHADES for shade in shades)
    if any(1e-12 < change < math.inf for change in changes):
        assert scale.shade(max(change for change in changes if change < math.inf)) == SHADES


def test_small_differences_stay_small_and_outliers_leave_colours_to_the_rest() -> None:
    assert Scale.over([0.100, 0.101]).shade(0.100) == SHADES
    scale = Scale.over([1e-9, 0.01, 0.1, 1.0])
    assert len({scale.shade(change) for change in (1e-9, 0.01, 0.1, 1.0)}) == 4
