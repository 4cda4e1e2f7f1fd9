"""A trained model with its world: what is loaded once and used by many jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from torch import Tensor

from benchmarks.forgetting.jobs import Model
from benchmarks.forgetting.models import WORLD_SEED, place
from benchmarks.forgetting.worlds import World, build
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import round_once
from chip.data.record import Record
from chip.model.loading import VLM, load_vlm
from chip.model.restoring import holding
from chip.model.tensor_names import key_map


class Worlds:
    """Each world built once, below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[tuple[str, int], World] = {}

    def of(self, name: str, seed: int = WORLD_SEED) -> World:
        if (name, seed) not in self._built:
            self._built[name, seed] = build(name, seed, self._folder / f"{name}-{seed}")
        return self._built[name, seed]


class LoadedCheckpoint:
    """A checkpoint, and the model in it. Nothing is loaded before it is needed."""

    def __init__(self, device: str | None = None) -> None:
        self.device = device

    @cached_property
    def folder(self) -> Path:
        raise NotImplementedError

    @cached_property
    def source(self) -> Checkpoint:
        return Checkpoint.open(self.folder)

    @cached_property
    def vlm(self) -> VLM:
        return load_vlm(self.folder, self.device)

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[VLM]:
        """The model in memory with these values, each rounded as it would be written."""
        values = {
            name: round_once(tensors[disk], self.source.entries[disk].torch_dtype)
            for name, disk in self._names.items()
            if disk in tensors
        }
        with holding(self.vlm, values):
            yield self.vlm

    @cached_property
    def _names(self) -> Mapping[str, str]:
        return key_map(self.source)


class Subject(LoadedCheckpoint):
    """A model that is to forget a part of its world."""

    def __init__(self, worlds: Worlds, model: Model, device: str | None = None) -> None:
        super().__init__(device)
        self.model = model
        self._worlds = worlds
        self._references: dict[str, Path] = {}

    @cached_property
    def world(self) -> World:
        return self._worlds.of(self.model.world)

    @cached_property
    def folder(self) -> Path:
        return place(self.world, self.model.family, self.model.seed)

    def reference(self, level: str) -> Path:
        """The model that was trained without any of the level's targets."""
        if level not in self._references:
            without = self.world.targets[level]
            self._references[level] = place(self.world, self.model.family, self.model.seed, without)
        return self._references[level]

    def unseen(self, level: str) -> list[Record]:
        """Questions as those about the level's targets, about another world of the same kind."""
        other = self._worlds.of(self.model.world, self.world.seed + 1)
        records = other.hierarchy.records
        targets = (other.groups(other.hierarchy.find(target))["target"] for target in other.targets[level])
        return [records[i] for indices in targets for i in indices if not records[i].held_out]
