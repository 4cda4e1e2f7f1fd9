"""A world: facts, pictures, what is to be forgotten of it, and whom that concerns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from benchmarks.forgetting.worlds.wording import Fact, rows
from chip.data.hierarchy import Hierarchy, Node
from chip.data.readers import read_records
from chip.data.record import LEVELS, Record
from chip.data.request import Partition
from chip.evaluation.groups import groups


@dataclass(frozen=True)
class WorldSpec:
    """A world before it is written."""

    facts: tuple[Fact, ...]
    pictures: Mapping[str, Image.Image]
    """Path relative to the world's folder -> picture."""
    targets: Mapping[str, tuple[tuple[str, ...], ...]]
    """Level, or what else one forgets, -> nodes to forget one at a time."""


@dataclass(frozen=True)
class World:
    """A world as it lies on disk."""

    name: str
    seed: int
    folder: Path
    digest: str
    """Of everything a model can learn from: the records file and the pictures."""
    facts: tuple[Fact, ...] = field(repr=False)
    targets: Mapping[str, tuple[str, ...]]
    """Level, or what else one forgets, -> nodes to forget one at a time, as `--forget` takes them. None of them lies
    beside another where the level has room for that, so that each keeps its siblings in a model trained without any."""

    @property
    def records_file(self) -> Path:
        return self.folder / "records.jsonl"

    @cached_property
    def hierarchy(self) -> Hierarchy:
        """Of all records, in every wording."""
        return Hierarchy(read_records(self.records_file))

    @cached_property
    def _above(self) -> dict[tuple[tuple[str, ...], str], tuple[str, ...]]:
        """(path, question) of each record that is about a node above its own -> that node."""
        facts = [fact for fact in self.facts if fact.owner != fact.path]
        return {(fact.path, row["question"]): fact.owner for fact in facts for row in rows([fact], LEVELS)}

    def groups(self, target: Node) -> dict[str, tuple[int, ...]]:
        """`chip.evaluation.groups` for this target, but for what is `shared`, which is known here.

        Institutions all lie beside each other: those that the model retrained without this level's targets has not seen
        either count as `unrelated`, so that the siblings are the same, and known, in both models.
        """
        partition = Partition.of(self.hierarchy, [target])
        of_partition = groups(self.hierarchy, partition)
        away = {i for other in self._beside(target) for i in self.hierarchy.records_of(other)}
        shared = tuple(index for index in partition.forget if self._is_above(self.hierarchy.records[index], target))
        only = tuple(index for index in partition.forget if index not in set(shared))
        siblings = tuple(index for index in of_partition["siblings"] if index not in away)
        unrelated = tuple(
            sorted({*of_partition["unrelated"], *(index for index in of_partition["siblings"] if index in away)})
        )
        return {**of_partition, "target": only, "shared": shared, "siblings": siblings, "unrelated": unrelated}

    def _beside(self, target: Node) -> list[Node]:
        """The other targets of its level."""
        named = next((names for names in self.targets.values() if str(target) in names), ())
        return [self.hierarchy.find(name) for name in named if name != str(target)]

    def _is_above(self, record: Record, target: Node) -> bool:
        """Whether the record is about a node above the target, such as the institution of a forgotten patient."""
        return not target.contains(self._above.get((record.path, record.question), record.path))
