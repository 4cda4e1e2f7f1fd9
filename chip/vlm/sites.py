"""Sites: the linear layers an edit may change, and the order in which data reaches them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from chip.errors import InputError

CONNECTOR_NAMES = ("multi_modal_projector", "connector", "visual.merger")
"""Where families keep the module between vision tower and text model, below the model without its head."""

LANGUAGE_NAMES = ("language_model", "text_model")
"""Where they keep the text model."""

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


@dataclass(frozen=True, slots=True)
class Site:
    """One linear layer y = W x + b."""

    name: str
    """Of the module, below the whole model."""
    kind: str
    """One of `KINDS`."""
    layer: int | None
    """Index of the text model's layer; None in the connector."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Sites that are measured in the same run through the model."""

    sites: tuple[Site, ...]

    @property
    def first(self) -> int | None:
        """The first site's layer; None: the connector."""
        return self.sites[0].layer

    @property
    def last(self) -> int | None:
        """The last site's layer; None: the connector."""
        return self.sites[-1].layer


def find_language(model: Any) -> Any:
    """The text model, with its `layers`: embeddings in, hidden states out.

    Raises:
        InputError: the family keeps it elsewhere.
    """
    return _find(model, LANGUAGE_NAMES, "text model")


def find_connector(model: Any) -> Any:
    """The module that turns the vision tower's hidden states into embeddings of the text model.

    Raises:
        InputError: the family keeps it elsewhere.
    """
    return _find(model, CONNECTOR_NAMES, "vision-language connector")


def _find(model: Any, names: Sequence[str], what: str) -> Any:
    for name in names:
        module: Any = getattr(model, "model", None)
        for part in name.split("."):
            module = getattr(module, part, None)
        if module is not None:
            return module
    raise InputError(
        f"{type(model).__name__}: no {what} found as {' or '.join(names)}; chip does not know this family yet"
    )


def available_sites(model: Any) -> list[Site]:
    """Every site of the model, in the order of data."""
    name_of = {module: name for name, module in model.named_modules()}
    connector = find_connector(model).modules()
    sites = [Site(name_of[module], "connector", None) for module in connector if isinstance(module, nn.Linear)]
    for index, layer in enumerate(find_language(model).layers):
        inside = dict(layer.named_modules())
        for kind, path in LAYER_MODULES.items():
            if isinstance(inside.get(path), nn.Linear):
                sites.append(Site(f"{name_of[layer]}.{path}", kind, index))
    return sites


def choose_sites(model: Any, kinds: Sequence[str], layers: range) -> list[Site]:
    """The sites of these kinds, in the order of data; `layers` restricts those of the text model.

    Raises:
        InputError: a kind is unknown, or one of the layers lacks it (fused or mixture-of-experts layers).
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"--sites: no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    available = available_sites(model)
    chosen = [site for site in available if site.kind in kinds and (site.layer is None or site.layer in layers)]
    for kind in kinds:
        found = {site.layer for site in chosen if site.kind == kind}
        wanted = {None} if kind == "connector" else set(layers)
        if missing := wanted - found:
            place = "the connector" if kind == "connector" else f"layer {min(n for n in missing if n is not None)}"
            raise InputError(
                f"{type(model).__name__}: {place} has no plain linear layer {kind!r}; choose other --sites or --layers"
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


def in_data_order(sites: Sequence[Site]) -> list[Stage]:
    """The sites as stages such that no site changes what another of its stage receives."""
    stages: list[list[Site]] = []
    for site in sites:
        together = stages and stages[-1][0].layer == site.layer and _same_input(stages[-1][0].kind, site.kind)
        if together:
            stages[-1].append(site)
        else:
            stages.append([site])
    return [Stage(tuple(stage)) for stage in stages]


def at_once(sites: Sequence[Site]) -> list[Stage]:
    """The sites as one stage: statistics of the unedited model."""
    return [Stage(tuple(sites))]


def _same_input(a: str, b: str) -> bool:
    return any({a, b} <= kinds for kinds in _SAME_INPUT)
