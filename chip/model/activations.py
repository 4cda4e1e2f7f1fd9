"""What stands between two linear maps of a connector, or of a gated MLP."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from chip.model.families import find_connectors, find_language
from chip.model.target_modules import Component, TargetModule

_SOURCES = ("torch.nn.modules.activation", "transformers.activations")
"""Files whose modules act on each value by itself; attention and softmax are among them, and no connector's."""

_NORM_BEHIND = re.compile(r"post_?(feed_?forward|mlp|ffn)")
"""In names of a layer's parts: a norm of what its MLP gives."""
_SCALE = re.compile(r"residual|scale|multiplier")
"""In names of a layer's own numbers: what its MLP gives is multiplied by one."""


def activation_behind(model: Any, module: TargetModule) -> Callable[[Tensor], Tensor] | None:
    """What a connector's linear map is followed by, or `gate` in an MLP; None elsewhere, and where nothing is known.

    Modules stand in the order in which they are used, in all families known so far; whoever relies on it compares what
    the next map gets.
    """
    if module.kind == "gate" and module.layer is not None:
        return _gate_activation(find_language(model).layers[module.layer], module)
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


def _gate_activation(layer: nn.Module, module: TargetModule) -> Callable[[Tensor], Tensor] | None:
    """The activation of the layer's MLP; None where the layer is not known to add what its MLP gives as it is.

    Families scale it (by a number or a parameter of the layer's own), or have a norm behind it.
    """
    own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    numbers = [name for name, value in vars(layer).items() if isinstance(value, float) and _SCALE.search(name)]
    if own or numbers or any(_NORM_BEHIND.search(name) for name, _ in layer.named_children()):
        return None
    path = module.name.split(".")[-2]
    candidates = [part for part in layer.get_submodule(path).children() if type(part).__module__ in _SOURCES]
    return candidates[0] if len(candidates) == 1 else None
