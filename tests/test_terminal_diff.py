"""The heat map in the terminal: it fits, and says the same without colors."""

import io
import math

import pytest
from rich.console import Console

from chip.checkpoint.diff import CheckpointDiff, ShapeDiff
from chip.checkpoint.tensor_diff import DIRECTIONS, TensorDiff
from chip.report.text import diff

KINDS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")


def model(layers: int = 28) -> CheckpointDiff:
    """A text model of which the second half of the down projections changed."""
    tensors = []
    for layer in range(layers):
        for kind in KINDS:
            name = f"model.language_model.layers.{layer}.{kind}_proj.weight"
            if kind == "mlp.down" and 2 * layer >= layers:
                share = 0.001 * (layer + 1)
                energy = tuple((k, k / 64) for k in DIRECTIONS)
                measures = (share, share, 5.5, 1.0, energy, (1.0,), 1.0, share)
                tensors.append(TensorDiff(name, (3584, 18944), "BF16", True, *measures))
            else:
                tensors.append(TensorDiff(name, (3584, 3584), "BF16", changed=False))
    return CheckpointDiff(tuple(tensors), (), (), ())


def shown(difference: CheckpointDiff, width: int, color: bool = False) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=color, color_system="truecolor" if color else None)
    diff.print_diff(difference, console)
    return file.getvalue().splitlines()


def test_a_large_model_fits_into_80_columns() -> None:
    lines = shown(model(), 80)
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["layer", "q", "k", "v", "o", "gate", "up", "down", "all"]
    assert lines[2].split() == ["0", *"·······", "·"]
    assert lines[29].split() == ["27", *"······", "0.028", "0.028"]
    assert lines[-1] == "14 of 196 tensors differ"


def test_what_is_too_wide_goes_below() -> None:
    lines = shown(model(2), 60)
    heads = [line.split() for line in lines if line.lstrip().startswith("layer")]
    assert len(heads) == 2
    assert [kind for head in heads for kind in head[1:-1]] == ["q", "k", "v", "o", "gate", "up", "down"]


def test_colors_say_what_the_numbers_say() -> None:
    plain, colored = ("\n".join(shown(model(), 100, color)) for color in (False, True))
    assert "\x1b" not in plain
    assert "48;2;254;232;56" in colored  # the most: yellow
    assert "48;2;0;34;78" not in plain


def test_what_cannot_be_measured_is_told() -> None:
    odd = TensorDiff("[red]head", (), "BF16 -> F32", True, math.inf, 1.0, None, 1.0, name_in_b="lm.head")
    difference = CheckpointDiff((odd,), (ShapeDiff("embed", (3, 4), (5, 4)),), ("only.here",), ("only.there",))
    lines = shown(difference, 100)
    text = "\n".join(lines)
    for words in ("[red]head", "in B: lm.head", "BF16 -> F32", "∞", "scalar", "other shape: embed  3×4 in A, 5×4 in B"):
        assert words in text
    assert lines[-3:] == [
        "only in A: only.here",
        "only in B: only.there",
        "1 of 1 tensors differ, 1 of another shape, 1 only in A, 1 only in B",
    ]
    assert shown(CheckpointDiff((), (), (), ()), 80) == ["equal"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (0.0123, "0.012"), (2e-5, "2e-05"), (12.34, "12.34"), (math.inf, "∞")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert diff._number(value) == text
