"""Stages: the target modules that are measured in one pass, in the order in which data reaches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from chip.model.target_modules import Component, TargetModule

_SAME_INPUT = ({"q", "k", "v"}, {"gate", "up"})


@dataclass(frozen=True, slots=True)
class Stage:
    """Target modules that are observed in the same run through the model, in the order of data."""

    target_modules: tuple[TargetModule, ...]
    layer_outputs: bool = False
    """What comes out of the last one is taken to be what leaves its layer."""

    @property
    def first(self) -> int | None:
        """The first module's layer; None in the connector."""
        return self.target_modules[0].layer

    @property
    def last(self) -> int | None:
        """The last module's layer; None in the connector."""
        return self.target_modules[-1].layer

    @property
    def first_only(self) -> Stage:
        """Enough to observe where all its modules have the same inputs."""
        return Stage(self.target_modules[:1])


def in_data_order(target_modules: Sequence[TargetModule]) -> list[Stage]:
    """The target modules as stages such that no module changes what another of its stage receives."""
    stages: list[list[TargetModule]] = []
    for module in target_modules:
        if stages and _same_input(stages[-1][0], module):
            stages[-1].append(module)
        else:
            stages.append([module])
    return [Stage(tuple(stage)) for stage in stages]


def at_once(target_modules: Sequence[TargetModule]) -> list[Stage]:
    """The target modules as one stage: statistics of the unedited model."""
    return [Stage(tuple(target_modules))]


def by_layer(target_modules: Sequence[TargetModule]) -> list[Stage]:
    """The target modules as one stage for each layer of the text model, and one for all that comes before: statistics
    of the unedited model, where layers come one after the other."""
    return [Stage(tuple(group)) for _, group in groupby(target_modules, lambda module: module.layer)]


def by_connector(target_modules: Sequence[TargetModule]) -> list[Stage]:
    """The target modules as stages of one connector each; every other module is a stage of its own."""
    stages: list[list[TargetModule]] = []
    for module in target_modules:
        if stages and module.connector is not None and stages[-1][0].connector == module.connector:
            stages[-1].append(module)
        else:
            stages.append([module])
    return [Stage(tuple(stage)) for stage in stages]


def by_mlp(target_modules: Sequence[TargetModule]) -> list[Stage]:
    """The target modules, of MLPs in the text model, as stages of one MLP each, with what leaves its layer."""
    layers: dict[int | None, list[TargetModule]] = {}
    for module in target_modules:
        layers.setdefault(module.layer, []).append(module)
    return [Stage(tuple(modules), layer_outputs=True) for modules in layers.values()]


def _same_input(a: TargetModule, b: TargetModule) -> bool:
    kinds = {module.kind.removeprefix(f"{Component.VISION}.") for module in (a, b)}
    return (a.component, a.layer) == (b.component, b.layer) and any(kinds <= same for same in _SAME_INPUT)
