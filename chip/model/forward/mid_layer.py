"""A layer of the text model that goes on in the middle: behind its attention, before its MLP's last projection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from chip.model.families import TEXT_MODULES
from chip.model.forward.trace import Call, replace_input, replace_output, trace

_PARTS = (TEXT_MODULES["o"].rpartition(".")[0], *(TEXT_MODULES[kind] for kind in ("gate", "up", "down")))
"""A layer's attention, and the projections of its MLP."""


@dataclass
class MidLayer:
    """Where a batch has got to inside a layer. Filled while `trace_mid_layer` is active."""

    attention: Any = None
    """What the layer's attention returns."""
    activations: Tensor | None = None
    """(B, T, d_in): what goes into the MLP's last projection."""

    def values(self) -> tuple[Any, Any]:
        return self.attention, self.activations


def has_mid_layer(layer: nn.Module) -> bool:
    """Whether the layer has these parts; in some families gate and up are one."""
    return {name for name, _ in layer.named_modules()}.issuperset(_PARTS)


def _parts(layer: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(layer.get_submodule(name) for name in _PARTS)


@contextmanager
def trace_mid_layer(layer: nn.Module, reached: MidLayer) -> Iterator[None]:
    """Fill `reached`. To be entered before hooks that stop at the last projection."""
    attention, _, _, down = _parts(layer)

    def keep_attention(_: Any, output: Any) -> None:
        reached.attention = output

    def keep_activations(x: Tensor) -> None:
        reached.activations = x

    with trace(attention, output=keep_attention), trace(down, input=keep_activations):
        yield


@contextmanager
def resume_mid_layer(layer: nn.Module, reached: MidLayer) -> Iterator[None]:
    """The layer goes on from there: attention and the MLP's first projections are not computed again."""
    attention, gate, up, down = _parts(layer)
    with (
        replace_output(attention, reached.attention),
        replace_output(gate, reached.activations),
        replace_output(up, reached.activations),
        replace_input(Call(down, (reached.activations,), {})),
    ):
        yield
