"""Sites: the linear layers an edit may change, and the order in which data reaches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from chip.errors import InputError

CONNECTOR_NAMES = ("multi_modal_projector", "connector", "visual.merger")
"""Where families keep the module between vision tower and text model, below the model without its head."""

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


def find_connector(core: nn.Module) -> tuple[str, nn.Module]:
    """Name (below `core`, the model without its head) and module of the vision-language connector."""
    for name in CONNECTOR_NAMES:
        module: Any = core
        for part in name.split("."):
            module = getattr(module, part, None)
        if module is not None:
            return name, module
    raise InputError(
        f"{type(core).__name__}: no vision-language connector found under {', '.join(CONNECTOR_NAMES)}; "
        "this family is not known to chip"
    )


def find_sites(model: Any, kinds: Sequence[str], layers: Sequence[int]) -> list[Site]:
    """The sites of these kinds, in the order of data; `layers` restricts those of the text model.

    Raises:
        InputError: a kind is unknown, or a layer lacks it (fused or mixture-of-experts layers).
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"--sites: no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    name_of = {module: name for name, module in model.named_modules()}
    sites = []
    if "connector" in kinds:
        connector = find_connector(model.model)[1]
        linears = [module for module in connector.modules() if isinstance(module, nn.Linear)]
        sites += [Site(name_of[module], "connector", None) for module in linears]
    for index in sorted(layers):
        layer = model.model.language_model.layers[index]
        for kind, path in LAYER_MODULES.items():
            if kind not in kinds:
                continue
            name = f"{name_of[layer]}.{path}"
            module = dict(layer.named_modules()).get(path)
            if not isinstance(module, nn.Linear):
                raise InputError(f"{name}: not a linear layer of this model; choose other --sites or --layers")
            sites.append(Site(name, kind, index))
    if not sites:
        raise InputError("no site left to edit; widen --sites or --layers")
    return sites


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
