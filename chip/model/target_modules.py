"""Target modules: the linear maps an edit may change, and the order in which data reaches them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from chip.errors import InputError
from chip.model.experts import OutputMap, find_blocks
from chip.model.families import (
    TEXT_MODULES,
    VISION_MODULES,
    find_connectors,
    find_language,
    find_tower_layers,
    text_modules,
)
from chip.model.structure import linear_maps


class Component(StrEnum):
    """The part of a model that a module lies in, in the order of data."""

    VISION = "vision"
    CONNECTOR = "connector"
    TEXT = "text"


KINDS = (Component.CONNECTOR.value, *TEXT_MODULES)
"""What a method may edit by default, in any family; a model's vision tower has kinds of its own, as `vision.q`."""

OBSERVED = (Component.CONNECTOR, Component.TEXT)
"""Where statistics can be collected. A vision tower's tokens are not yet assigned to their records."""

_SHOWN = 4  # names in a message


@dataclass(frozen=True, slots=True)
class TargetModule:
    """One linear map y = W x + b; or a block of experts, whose output y is edited as a map W = I of itself."""

    name: str
    """Of the module, below the whole model; of the parameter where a parameter without a module is used as x W."""
    kind: str
    """One of `KINDS`, or in the vision tower `vision.q`, `vision.fc1`, ..."""
    component: Component
    layer: int | None
    """Index of the layer in the text model, or in the vision tower; None in the connector, which has no layers."""
    bias: bool
    is_parameter: bool = False
    """No module of its own: the parameter is multiplied from the right, and holds Wᵀ (Gemma 3's connector)."""
    connector: int | None = None
    """Which of the model's connectors it lies in; None outside them."""
    output_maps: tuple[OutputMap, ...] = ()
    """Of a block of experts: the parameters that end in its output, by their names below the whole model. An edit
    multiplies each of them."""

    @property
    def weight_name(self) -> str:
        """The parameter that holds W, or Wᵀ where there is no module; of a block of experts, the first of several."""
        if self.output_maps:
            return self.output_maps[0].name
        return self.name if self.is_parameter else f"{self.name}.weight"

    @property
    def bias_name(self) -> str | None:
        return f"{self.name}.bias" if self.bias else None

    @property
    def parameter_names(self) -> list[str]:
        """What an edit of it changes."""
        if self.output_maps:
            return [each.name for each in self.output_maps]
        return [self.weight_name, *([self.bias_name] if self.bias_name else [])]

    def weight(self, model: Any) -> Tensor:
        """W of a linear map, (d_out, d_in); a view of the model's parameter."""
        return self.oriented(model.get_parameter(self.weight_name))

    def shape(self, model: Any) -> tuple[int, int]:
        """(d_out, d_in); true also where the weight itself lies elsewhere."""
        parameter = model.get_parameter(self.weight_name)
        if self.output_maps:
            width = parameter.shape[self.output_maps[0].axis]
            return width, width
        d_out, d_in = self.oriented(parameter).shape
        return d_out, d_in

    def oriented(self, parameter: Tensor) -> Tensor:
        """A weight from its own orientation to (d_out, d_in), or back; a bias as it is. A view."""
        return parameter.T if self.is_parameter and parameter.dim() == 2 else parameter


def available_modules(model: Any) -> list[TargetModule]:
    """Every target module of the model, those of its vision tower too, in the order of data.

    Raises:
        InputError: the model lacks a part that chip needs.
    """
    name_of = {module: name for name, module in model.named_modules()}
    connectors = [
        TargetModule(
            f"{name_of[connector]}.{name}".rstrip("."), "connector", Component.CONNECTOR, None, bias, bare, number
        )
        for number, connector in enumerate(find_connectors(model))
        for name, bias, bare in linear_maps(connector)
    ]
    return [*_vision_modules(model, name_of), *connectors, *_text_modules(model, name_of)]


def _vision_modules(model: Any, name_of: dict[nn.Module, str]) -> Iterator[TargetModule]:
    for index, layer in enumerate(find_tower_layers(model)):
        modules = [
            TargetModule(f"{name_of[layer]}.{path}", _vision_kind(path), Component.VISION, index, bias)
            for path, bias, is_parameter in linear_maps(layer)
            if not is_parameter
        ]
        yield from sorted(modules, key=lambda module: _rank(module.kind))  # some towers list the MLP first


def _vision_kind(path: str) -> str:
    last = path.rpartition(".")[2]
    return f"{Component.VISION}.{VISION_MODULES.get(last, last)}"


def _rank(vision_kind: str) -> int:
    """Where a layer of the vision tower uses this kind, among the others."""
    order, kind = list(dict.fromkeys(VISION_MODULES.values())), vision_kind.partition(".")[2]
    return order.index(kind) if kind in order else len(order)


def _text_modules(model: Any, name_of: dict[nn.Module, str]) -> Iterator[TargetModule]:
    for index, layer in enumerate(find_language(model).layers):
        inside = dict(layer.named_modules())
        for kind, paths in text_modules(model).items():
            linear = {path: module for path in paths if isinstance(module := inside.get(path), nn.Linear)}
            for path, module in list(linear.items())[:1]:
                yield TargetModule(f"{name_of[layer]}.{path}", kind, Component.TEXT, index, module.bias is not None)
        if "down" in text_modules(model):
            yield from _expert_blocks(model, name_of[layer], layer, index)


def _expert_blocks(model: Any, name: str, layer: nn.Module, index: int) -> Iterator[TargetModule]:
    """Blocks of experts, of the kind of what else ends an MLP."""
    for path, maps in find_blocks(layer, model.config.get_text_config().hidden_size):
        block = f"{name}.{path}"
        named = tuple(OutputMap(f"{block}.{each.name}", each.axis) for each in maps)
        yield TargetModule(block, "down", Component.TEXT, index, bias=False, output_maps=named)


def select_modules(model: Any, kinds: Sequence[str], layers: Sequence[int]) -> list[TargetModule]:
    """The target modules of these kinds, in the order of data; `layers` restricts those of the text model.

    Raises:
        InputError: a kind is unknown, lies where nothing is observed, or one of the layers lacks it: the message says
            what it has instead.
    """
    available = available_modules(model)
    _check_kinds(kinds, available)
    selected = [
        module
        for module in available
        if module.kind in kinds and (module.component is not Component.TEXT or module.layer in layers)
    ]
    for kind in kinds:
        there = {module.layer for module in selected if module.kind == kind}
        expected = set(layers) if kind in text_modules(model) else set()
        lacking = sorted(expected - there)
        if lacking or not there:
            what = _what_is_there(model, kind, lacking[0]) if lacking else "its connector has no plain linear layer"
            message = f"{type(model).__name__}: {what}; choose other target modules or layers"
            raise InputError(message, argument="target_modules", value=kind)
    return selected


def _what_is_there(model: Any, kind: str, index: int) -> str:
    """Says that a layer of the text model has no plain linear layer of this kind, and what it has."""
    paths = text_modules(model)
    path, known = paths[kind][0], {path for each in paths.values() for path in each}
    inside = dict(find_language(model).layers[index].named_modules())
    part = path.partition(".")[0]
    linear = [name for name, module in inside.items() if isinstance(module, nn.Linear)]
    others = [name for name in linear if name not in known]
    near = [name for name in others if name.startswith(f"{part}.")] or others
    if path in inside:
        there = f"a {type(inside[path]).__name__}, and no linear layer"
    elif any(name.startswith(f"{part}.") and "experts" in name.split(".") for name in inside):
        there = "experts instead, which an edit does not reach"
    else:
        there = f"{', '.join(near[:_SHOWN])} instead" if near else "nothing in its place"
    return f"layer {index} has no plain linear layer {path} ({there})"


def _check_kinds(kinds: Sequence[str], available: Sequence[TargetModule]) -> None:
    components = {module.kind: module.component for module in available}
    known = dict.fromkeys((*KINDS, *components))
    for kind in kinds:
        if kind not in known:
            raise InputError(f"no such kind; there are {', '.join(known)}", argument="target_modules", value=kind)
        if components.get(kind, Component.TEXT) not in OBSERVED:
            raise InputError(
                f"the vision tower's modules cannot be edited yet; choose among {', '.join(KINDS)}",
                argument="target_modules",
                value=kind,
            )


def layer_range(share: tuple[float, float], depth: int) -> range:
    """The layers between two shares of the depth; at least one."""
    first, last = round(share[0] * depth), round(share[1] * depth)
    return range(min(first, last - 1), last)


def parse_layers(text: str, depth: int) -> range:
    """`22-27` (from 0, both ends in), `7`, `50%-100%` or `all`, for a text model of `depth` layers.

    Raises:
        InputError: it is none of these, or leads outside the model.
    """
    if text == "all":
        return range(depth)
    share = re.fullmatch(r"(\d{1,3}(?:\.\d{1,9})?)%-(\d{1,3}(?:\.\d{1,9})?)%", text)
    index = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
    if share:
        span = layer_range((float(share[1]) / 100, float(share[2]) / 100), depth)
    elif index:
        span = range(int(index[1]), int(index[2] or index[1]) + 1)
    else:
        raise InputError("not understood; write 22-27, 50%-100% or all", argument="layers", value=text)
    if not span or span.start < 0 or span.stop > depth:
        raise InputError(f"the text model has layers 0 to {depth - 1}", argument="layers", value=text)
    return span
