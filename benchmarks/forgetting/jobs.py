"""What there is to do, in the order in which it is done: breadth first, so that a run that is stopped has measured the
same targets everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.forgetting.worlds import World

SEEDS = {"qwen2_5_vl": 3, "llava": 1}
"""Family -> how many models of it are trained on each world."""


@dataclass(frozen=True, order=True)
class Model:
    """A trained model."""

    world: str
    family: str
    seed: int

    def __str__(self) -> str:
        return f"{self.world}, {self.family}, seed {self.seed}"

    @property
    def key(self) -> dict[str, Any]:
        """What its results are found by."""
        return {"world": self.world, "family": self.family, "seed": self.seed}

    @property
    def previous(self) -> Model | None:
        """The family's model before it."""
        return replace(self, seed=self.seed - 1) if self.seed else None


@dataclass(frozen=True, order=True)
class Request:
    """One node that one model is to forget."""

    model: Model
    level: str
    target: str
    """Its path."""

    def __str__(self) -> str:
        return f"{self.model}: {self.target}"


@dataclass(frozen=True)
class Scope:
    """What a run covers."""

    worlds: tuple[str, ...]
    families: tuple[str, ...]
    methods: tuple[str, ...]
    """Those of `METHODS` that run; what they are compared with always does."""
    levels: tuple[str, ...] | None = None
    """None: all that a world has."""
    seeds: int = max(SEEDS.values())
    """At most, of each family."""
    targets: int = 5
    """At most, of each level."""
    attacks: bool = True
    attacks_for: tuple[str, ...] | None = None
    """Methods; None: ours and the best of each kind."""

    def levels_of(self, world: World) -> list[str]:
        return [level for level in world.targets if self.levels is None or level in self.levels]

    def seeds_of(self, family: str) -> int:
        return min(self.seeds, SEEDS[family])

    def targets_of(self, world: World, level: str) -> tuple[str, ...]:
        return world.targets[level][: self.targets]


def requests(
    scope: Scope,
    worlds: Mapping[str, World],
    seed: int,
    count: int,
    ready: Callable[[Model, str], bool] = lambda model, level: True,
) -> list[Request]:
    """The first target of every level of every model of a seed, then the second of each, and so on.

    Args:
        count: targets of a level, at most.
        ready: whether a model, and the one that it is compared with at a level, are there.
    """
    models = [
        Model(world, family, seed)
        for world in scope.worlds
        for family in scope.families
        if seed < scope.seeds_of(family)
    ]
    tables = [(model, level) for model in models for level in scope.levels_of(worlds[model.world])]
    ready_tables = [
        (model, level, scope.targets_of(worlds[model.world], level)) for model, level in tables if ready(model, level)
    ]
    return [
        Request(model, level, targets[number])
        for number in range(min(count, scope.targets))
        for model, level, targets in ready_tables
        if number < len(targets)
    ]
