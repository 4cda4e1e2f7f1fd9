"""What stands between two linear maps of a connector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from chip.model.families import find_connectors
from chip.model.target_modules import Component, TargetModule

_SOURCES = ("torch.nn.modules.activation", "transformers.activations")
"""Files whose modules act on each value by itself; attention and softmax are among them, and no connector's."""


def activation_behind(model: Any, module: TargetModule) -> Callable[[Tensor], Tensor] | None:
    """What a connector's linear map is followed by; None outside connectors, and where nothing of the kind follows it.

    Modules stand in the order in which they are used, in all families known so far; whoever relies on it compares what
    the next map gets.
    """
    if module.component is not Component.CONNECTOR or module.connector is None or module.is_parameter:
        return None
    inside = list(find_connectors(model)[module.connector].modules())
    behind = inside[inside.index(model.get_submodule(module.name)) + 1 :]
    for other in behind:
        if isinstance(other, nn.Linear):
            return None
        if type(other).__module__ in _SOURCES:
            activation: Callable[[Tensor], Tensor] = other
            return activation
    return None
