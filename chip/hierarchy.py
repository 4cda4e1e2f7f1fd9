"""The hierarchy that the records span, and what forgetting some of its nodes leaves."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chip.errors import InputError
from chip.records import LEVELS, Record


@dataclass(frozen=True, slots=True)
class Node:
    """An institution, a patient, a study or a section, told apart by the whole path to it."""

    path: tuple[str, ...]
    """Ids from the institution down to this node; 1 to 4 of them."""

    @property
    def id(self) -> str:
        return self.path[-1]

    @property
    def level(self) -> str:
        """One of `LEVELS`."""
        return LEVELS[len(self.path) - 1]

    @property
    def parent(self) -> Node | None:
        """The node above; None for an institution."""
        return Node(self.path[:-1]) if len(self.path) > 1 else None

    def contains(self, path: tuple[str, ...]) -> bool:
        """Whether the path leads to this node or below it."""
        return path[: len(self.path)] == self.path

    def __str__(self) -> str:
        return "/".join(self.path)


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the records to forget, of those close to them, and of all others.

    `forget`, `siblings` and `rest` share no record and together are all of them; each is in ascending order.
    """

    targets: tuple[Node, ...]
    """What is forgotten, as asked for, without duplicates and without targets inside another."""
    forget: tuple[int, ...]
    """Records at or below a target."""
    siblings: tuple[int, ...]
    """Retained records at or below a node that shares its parent with a target. Those of the parent itself
    are not among them."""
    rest: tuple[int, ...]
    """All other records."""
    forget_of: Mapping[Node, tuple[int, ...]]
    """The part of `forget` that each target brings in. Nothing is in two of them."""
    siblings_of: Mapping[Node, tuple[int, ...]]
    """The part of `siblings` that is close to each target; may be empty, and may overlap."""

    @property
    def retained(self) -> tuple[int, ...]:
        """All that is not forgotten: the siblings, then the rest."""
        return (*self.siblings, *self.rest)

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """The three parts by name: `target`, `siblings`, `rest`."""
        return {"target": self.forget, "siblings": self.siblings, "rest": self.rest}


class Hierarchy:
    """All nodes that occur in the records, with their ancestors, in order of first appearance."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = tuple(records)
        self._below: dict[Node, list[int]] = {}
        for index, record in enumerate(self.records):
            for depth in range(1, len(record.path) + 1):
                self._below.setdefault(Node(record.path[:depth]), []).append(index)
        self.nodes = tuple(self._below)
        self._children: dict[Node | None, list[Node]] = {}
        for node in self.nodes:
            self._children.setdefault(node.parent, []).append(node)

    def find(self, name: str) -> Node:
        """The node with this id, or whose path ends like this: `patient_17`, `institution_2/patient_17`.

        A full path always means the node at that path, even where it is the end of a longer one.

        Raises:
            InputError: no node has that name, or several have.
        """
        path = tuple(name.split("/"))
        if Node(path) in self._below:
            return Node(path)
        ends: dict[tuple[str, ...], list[Node]] = {}
        for node in self.nodes:
            if len(node.path) >= len(path):
                ends.setdefault(node.path[-len(path) :], []).append(node)
        match ends.get(path, []):
            case [node]:
                return node
            case []:
                near = difflib.get_close_matches(name, ["/".join(end) for end in ends], n=3)
                mend = f"did you mean {' or '.join(near)}?" if near else "`chip tree` lists the nodes"
                raise InputError(f"no node is called {name!r}; {mend}")
            case several:
                shown = ", ".join(map(str, several[:5])) + (", ..." if len(several) > 5 else "")
                raise InputError(f"{len(several)} nodes are called {name!r}; use the path of one: {shown}")

    def children(self, node: Node | None) -> tuple[Node, ...]:
        """The nodes one level below; of None, the institutions."""
        return tuple(self._children.get(node, ()))

    def records_of(self, node: Node) -> list[int]:
        """Indices of the records at or below the node, ascending; none where the node does not occur."""
        return list(self._below.get(node, ()))

    def count(self, node: Node) -> int:
        """How many records lie at or below the node."""
        return len(self._below.get(node, ()))

    def split(self, targets: Sequence[Node]) -> Split:
        """What forgetting the targets means for every record. A target inside another is swallowed by it.

        Raises:
            InputError: there is no target, one of them does not occur, or every record lies in one.
        """
        if not targets:
            raise InputError("nothing to forget; name at least one node")
        for target in targets:
            if target not in self._below:
                raise InputError(f"no record lies at or below {target}; name a node of these records")
        outermost = _outermost(targets)
        forgotten = {index for target in outermost for index in self._below[target]}
        if len(forgotten) == len(self.records):
            raise InputError("nothing would be left to keep: the targets hold every record; forget fewer nodes")

        # Once for each parent: targets side by side have the same siblings. The targets are among the
        # children too, and drop out with their records.
        around = {
            parent: tuple(sorted({i for child in self._children[parent] for i in self._below[child]} - forgotten))
            for parent in {target.parent for target in outermost}
        }
        near = {index for indices in around.values() for index in indices}
        return Split(
            targets=outermost,
            forget=tuple(sorted(forgotten)),
            siblings=tuple(sorted(near)),
            rest=tuple(i for i in range(len(self.records)) if i not in forgotten and i not in near),
            forget_of={target: tuple(self._below[target]) for target in outermost},
            siblings_of={target: around[target.parent] for target in outermost},
        )


def _outermost(targets: Sequence[Node]) -> tuple[Node, ...]:
    named = {target.path for target in targets}
    return tuple(
        target
        for target in dict.fromkeys(targets)
        if not any(target.path[:depth] in named for depth in range(1, len(target.path)))
    )
