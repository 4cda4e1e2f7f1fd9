"""A layer of the text model that goes on in the middle: behind its attention, in front of its MLP's last projection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from chip.model.families import TEXT_MODULES
from chip.model.forward.trace import Call, fed, input_of, output_of, returning

_PARTS = (TEXT_MODULES["o"].rpartition(".")[0], *(TEXT_MODULES[kind] for kind in ("gate", "up", "down")))
"""A layer's attention, and the projections of its MLP."""


def resumable(layer: nn.Module) -> bool:
    """Whether the layer has these parts; in some families gate and up are one."""
    return {name for name, _ in layer.named_modules()}.issuperset(_PARTS)


def _parts(layer: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(layer.get_submodule(name) for name in _PARTS)


@contextmanager
def watching_inside(layer: nn.Module) -> Iterator[tuple[list[Any], list[Any]]]:
    """What the layer's attention gives, and what goes into its last projection."""
    attention, _, _, down = _parts(layer)
    with output_of(attention) as given, input_of(down) as x:
        yield given, x


@contextmanager
def resumed(layer: nn.Module, given: Any, x: Tensor) -> Iterator[None]:
    """The layer goes on from there: attention and the MLP's first projections are not computed again."""
    attention, gate, up, down = _parts(layer)
    with returning(attention, given), returning(gate, x), returning(up, x), fed(Call(down, (x,), {})):
        yield
