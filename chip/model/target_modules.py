"""Sites: the linear maps an edit may change, and the order in which data reaches them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from chip.errors import InputError

LAYER_MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Kind of site -> its module in a layer of the text model, in the order of data."""

KINDS = ("connector", *LAYER_MODULES)

_SAME_INPUT = ({"q", "k", "v"}, {"gate", "up"})


class Component(StrEnum):
    """The part of a model that a module lies in."""

    VISION = "vision"
    CONNECTOR = "connector"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class TargetModule:
    """One linear map y = W x + b."""

    name: str
    """Of the module, below the whole model; of the parameter where a bare matrix is used as x W."""
    kind: str
    """One of `KINDS`."""
    layer: int | None
    """Index of the text model's layer; None in the connector."""
    bias: bool
    is_parameter: bool = False
    """No module of its own: the parameter is multiplied from the right, and holds Wᵀ (Gemma 3's connector)."""
    connector: int | None = None
    """Which of the model's connectors it lies in; None in the text model."""

    @property
    def component(self) -> Component:
        return Component.CONNECTOR if self.layer is None else Component.TEXT

    @property
    def weight_name(self) -> str:
        """The parameter that holds W, or Wᵀ where it is bare."""
        return self.name if self.is_parameter else f"{self.name}.weight"

    @property
    def bias_name(self) -> str | None:
        return f"{self.name}.bias" if self.bias else None

    def weight(self, model: Any) -> Tensor:
        """W, (d_out, d_in); a view of the model's parameter."""
        return self.oriented(model.get_parameter(self.weight_name))

    def oriented(self, parameter: Tensor) -> Tensor:
        """A weight from its own orientation to (d_out, d_in), or back; a bias as it is. A view."""
        return parameter.T if self.is_parameter and parameter.dim() == 2 else parameter


@dataclass(frozen=True, slots=True)
class Stage:
    """Sites that are measured in the same run through the model."""

    target_modules: tuple[TargetModule, ...]

    @property
    def first(self) -> int | None:
        """The first site's layer; None: the connector."""
        return self.target_modules[0].layer

    @property
    def last(self) -> int | None:
        """The last site's layer; None: the connector."""
        return self.target_modules[-1].layer

    @property
    def first_only(self) -> Stage:
        """Enough to watch where all its sites have the same inputs."""
        return Stage(self.target_modules[:1])


def find_language(model: Any) -> Any:
    """The text model, with its `layers`: embeddings in, hidden states out.

    Raises:
        InputError: the family has none that transformers names.
    """
    text = _named(model, "text model", "get_decoder")
    if not isinstance(getattr(text, "layers", None), nn.ModuleList):
        raise _unknown(model, "text model with layers")
    return text


def find_connectors(model: Any) -> list[Any]:
    """The modules that turn the vision tower's hidden states into embeddings of the text model.

    They stand beside the tower and the text model. Where nothing does, they are the parts of the tower, its layers
    apart, that end in the text model's width: the merger of Qwen-VL, and those that feed its first layers directly.

    Raises:
        InputError: there are none.
    """
    text, vision = find_language(model), _named(model, "vision tower", "get_encoder", modality="image")
    beside = [child for child in model.model.children() if child is not text and child is not vision]
    connectors = [child for child in beside if list(_maps(child))]
    if not connectors:
        width = model.config.get_text_config().hidden_size
        connectors = [part for part in _parts(vision) if _ends_in(part, width)]
    if not connectors:
        raise _unknown(model, "vision-language connector")
    return connectors


def find_tower_layers(model: Any) -> list[Any]:
    """The layers of the vision tower: those of its lists whose members attend."""
    vision = _named(model, "vision tower", "get_encoder", modality="image")
    lists = [module for module in vision.modules() if isinstance(module, nn.ModuleList)]
    return [layer for each in lists for layer in each if _attends(layer)]


def _named(model: Any, what: str, getter: str, **arguments: Any) -> Any:
    """The part of the model that transformers itself names."""
    part = getattr(model, getter)(**arguments) if hasattr(model, "model") else None
    if part is None or part in (model, model.model):
        raise _unknown(model, what)
    return part


def _unknown(model: Any, what: str) -> InputError:
    return InputError(f"{type(model).__name__}: no {what} found in it; chip does not know this family yet")


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The children, those of a list one by one."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else (child,)


def _ends_in(part: nn.Module, width: int) -> bool:
    linear = [module for module in part.modules() if isinstance(module, nn.Linear)]
    return bool(linear) and linear[-1].out_features == width and not _attends(part)


def _attends(part: nn.Module) -> bool:
    return any("attn" in name or "attention" in name for name, _ in part.named_modules())


def _maps(module: nn.Module) -> Iterator[tuple[str, bool, bool]]:
    """Linear maps in `module`: name below it, whether it has a bias, whether it is a bare matrix."""
    for name, inner in module.named_modules():
        if isinstance(inner, nn.Linear):
            yield name, inner.bias is not None, False
        elif not isinstance(inner, nn.Embedding):
            for own, parameter in inner.named_parameters(recurse=False):
                if parameter.dim() == 2:
                    yield f"{name}.{own}".lstrip("."), False, True


def available_modules(model: Any) -> list[TargetModule]:
    """Every site of the model, in the order of data."""
    name_of = {module: name for name, module in model.named_modules()}
    target_modules = [
        TargetModule(f"{name_of[connector]}.{name}".rstrip("."), "connector", None, bias, is_parameter, number)
        for number, connector in enumerate(find_connectors(model))
        for name, bias, is_parameter in _maps(connector)
    ]
    for index, layer in enumerate(find_language(model).layers):
        inside = dict(layer.named_modules())
        for kind, path in LAYER_MODULES.items():
            module = inside.get(path)
            if isinstance(module, nn.Linear):
                target_modules.append(TargetModule(f"{name_of[layer]}.{path}", kind, index, module.bias is not None))
    return target_modules


def select_modules(model: Any, kinds: Sequence[str], layers: range) -> list[TargetModule]:
    """The sites of these kinds, in the order of data; `layers` restricts those of the text model.

    Raises:
        InputError: a kind is unknown, or one of the layers lacks it (fused or mixture-of-experts layers).
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"--target-modules: no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    available = available_modules(model)
    chosen = [
        module for module in available if module.kind in kinds and (module.layer is None or module.layer in layers)
    ]
    for kind in kinds:
        found = {module.layer for module in chosen if module.kind == kind}
        wanted = {None} if kind == "connector" else set(layers)
        if missing := wanted - found:
            place = "the connector" if kind == "connector" else f"layer {min(n for n in missing if n is not None)}"
            raise InputError(
                f"{type(model).__name__}: {place} has no plain linear layer {kind!r} (fused, or experts); "
                "choose other --target-modules or --layers"
            )
    return chosen


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
    share = re.fullmatch(r"(\d+(?:\.\d+)?)%-(\d+(?:\.\d+)?)%", text)
    index = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if share:
        span = layer_range((float(share[1]) / 100, float(share[2]) / 100), depth)
    elif index:
        span = range(int(index[1]), int(index[2] or index[1]) + 1)
    else:
        raise InputError(f"--layers {text}: not understood; write 22-27, 50%-100% or all")
    if not span or span.start < 0 or span.stop > depth:
        raise InputError(f"--layers {text}: the text model has layers 0 to {depth - 1}")
    return span


def in_data_order(target_modules: Sequence[TargetModule]) -> list[Stage]:
    """The sites as stages such that no site changes what another of its stage receives."""
    stages: list[list[TargetModule]] = []
    for module in target_modules:
        together = stages and stages[-1][0].layer == module.layer and _same_input(stages[-1][0].kind, module.kind)
        if together:
            stages[-1].append(module)
        else:
            stages.append([module])
    return [Stage(tuple(stage)) for stage in stages]


def at_once(target_modules: Sequence[TargetModule]) -> list[Stage]:
    """The sites as one stage: statistics of the unedited model."""
    return [Stage(tuple(target_modules))]


def _same_input(a: str, b: str) -> bool:
    return any({a, b} <= kinds for kinds in _SAME_INPUT)
