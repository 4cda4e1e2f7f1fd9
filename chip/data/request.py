"""A request to forget: which nodes, among which records, and who stays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from chip.data.answers import canonical_answer, normalized_question
from chip.data.hierarchy import Hierarchy, Node
from chip.data.record import Record
from chip.errors import InputError

STAYING = ("siblings", "other")
"""Groups of a partition that an edit is to leave as they are."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Indices of the records to forget, of those close to them, and of all others.

    `forget`, `siblings` and `retain_other` share no record and together are all of them; each is in ascending order. Of
    a part of a request (`ForgetRequest.part`) the target's other records are in none.
    """

    targets: tuple[Node, ...]
    """What is forgotten, as requested, without duplicates and without targets inside another."""
    forget: tuple[int, ...]
    """Records at or below a target."""
    siblings: tuple[int, ...]
    """Retained records at or below a node that shares its parent with a target. Those of the parent itself
    are not among them."""
    retain_other: tuple[int, ...]
    """All other records."""
    forget_of: Mapping[Node, tuple[int, ...]]
    """The part of `forget` that each target brings in. Nothing is in two of them."""
    siblings_of: Mapping[Node, tuple[int, ...]]
    """The part of `siblings` that is close to each target; may be empty, and may overlap."""
    on_shared_images: tuple[int, ...] = ()
    """The part of `forget` whose image is not the target's alone: a sibling or somebody else shows it too."""
    ancestors: tuple[int, ...] = ()
    """The part of `retain_other` that asks about a node above a target on an image that is otherwise the target's
    alone, such as the institution's name on a patient's picture: what hangs on the image is lost with it."""

    @property
    def retained(self) -> tuple[int, ...]:
        """All that is not forgotten: the siblings, then the rest."""
        return (*self.siblings, *self.retain_other)

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """The parts as they are reported: `target`, `siblings`, `ancestors` where there are any, and `other`."""
        others, ancestors = set(self.ancestors), {"ancestors": self.ancestors} if self.ancestors else {}
        rest = tuple(index for index in self.retain_other if index not in others)
        return {"target": self.forget, "siblings": self.siblings, **ancestors, "other": rest}

    @classmethod
    def of(cls, hierarchy: Hierarchy, targets: Sequence[Node]) -> Self:
        """What forgetting the targets means for every record. A target inside another adds nothing.

        Raises:
            InputError: there is no target, one of them does not occur, or every record lies in one.
        """
        if not targets:
            raise InputError("nothing to forget; name at least one node")
        for target in targets:
            if not hierarchy.count(target):
                raise InputError(f"no record lies at or below {target}; name a node of these records")
        outermost = _outermost(targets)
        forgotten = {index for target in outermost for index in hierarchy.records_of(target)}
        if len(forgotten) == len(hierarchy.records):
            raise InputError("nothing would be left to keep: the targets hold every record; forget fewer nodes")

        # Once for each parent: targets side by side have the same siblings. The targets are among the
        # children too, and drop out with their records.
        around = {
            parent: tuple(
                sorted({i for child in hierarchy._children[parent] for i in hierarchy._below[child]} - forgotten)
            )
            for parent in {target.parent for target in outermost}
        }
        near = {index for indices in around.values() for index in indices}
        shared, ancestors = _image_owners(hierarchy.records, outermost, forgotten)
        return cls(
            targets=outermost,
            forget=tuple(sorted(forgotten)),
            siblings=tuple(sorted(near)),
            retain_other=tuple(i for i in range(len(hierarchy.records)) if i not in forgotten and i not in near),
            forget_of={target: tuple(hierarchy.records_of(target)) for target in outermost},
            siblings_of={target: tuple(sorted(around[target.parent])) for target in outermost},
            on_shared_images=shared,
            ancestors=ancestors,
        )


@dataclass(frozen=True)
class ForgetRequest:
    """Who is to be forgotten, among whom."""

    hierarchy: Hierarchy
    partition: Partition
    general: tuple[Record, ...] = ()
    """Texts that belong to nobody, and hold what else the model is to keep; see `chip.data.keep`."""
    named: tuple[Node, ...] = ()
    """The nodes as they were asked for, those inside another too: somebody may have asked for each of them."""

    @property
    def records(self) -> tuple[Record, ...]:
        """Those of the hierarchy, by their index there, then the general ones."""
        return (*self.hierarchy.records, *self.general)

    def among(self, hierarchy: Hierarchy) -> Self:
        """The same targets among other records.

        Raises:
            InputError: as `Partition.of` does.
        """
        return replace(self, hierarchy=hierarchy, partition=Partition.of(hierarchy, self.partition.targets))

    def part(self, belongs: Callable[[Record], bool]) -> Self:
        """To forget only those of the target's records; its others are neither forgotten nor retained."""
        records, whole = self.hierarchy.records, self.partition

        def some(indices: Sequence[int]) -> tuple[int, ...]:
            return tuple(index for index in indices if belongs(records[index]))

        forget_of = {target: some(indices) for target, indices in whole.forget_of.items()}
        shared = some(whole.on_shared_images)
        partition = replace(whole, forget=some(whole.forget), forget_of=forget_of, on_shared_images=shared)
        return replace(self, partition=partition)

    @classmethod
    def of(cls, hierarchy: Hierarchy, forget: Sequence[str]) -> Self:
        """The nodes of these ids or paths are to be forgotten.

        Raises:
            InputError: as `Hierarchy.find` and `Partition.of` do.
        """
        named = tuple(find_node(hierarchy, name) for name in forget)
        return cls(hierarchy, Partition.of(hierarchy, named), named=named)


def matched_records(request: ForgetRequest) -> list[int]:
    """Of the other retained records, those that ask what a target's record asks, or say what it says."""
    records, partition = request.hierarchy.records, request.partition
    questions, answers = ({of(records[i]) for i in partition.forget} for of in (normalized_question, canonical_answer))

    def matches(record: Record) -> bool:
        return normalized_question(record) in questions or canonical_answer(record) in answers

    return [i for i in partition.retain_other if matches(records[i])]


def find_node(hierarchy: Hierarchy, name: str) -> Node:
    """As `Hierarchy.find`; an error names the argument `forget`."""
    try:
        return hierarchy.find(name)
    except InputError as error:
        raise InputError(error.message, argument="forget", value=name) from error


def _image_owners(
    records: Sequence[Record], targets: Sequence[Node], forgotten: Collection[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`on_shared_images` and `ancestors` of a partition."""
    above = {target.path[:depth] for target in targets for depth in range(1, len(target.path))}
    retained = [i for i, record in enumerate(records) if i not in forgotten and record.image is not None]
    others = {image for i in retained if records[i].path not in above for image in records[i].images}
    own = {image for i in forgotten for image in records[i].images} - others
    shared = (i for i in sorted(forgotten) if not others.isdisjoint(records[i].images))
    return tuple(shared), tuple(i for i in retained if not own.isdisjoint(records[i].images))


def _outermost(targets: Sequence[Node]) -> tuple[Node, ...]:
    named = {target.path for target in targets}
    return tuple(
        target
        for target in dict.fromkeys(targets)
        if not any(target.path[:depth] in named for depth in range(1, len(target.path)))
    )
