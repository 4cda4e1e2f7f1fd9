"""The hierarchy that the records span, and what forgetting some of its nodes leaves."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from chip.data.record import LEVELS, Record
from chip.errors import InputError


@dataclass(frozen=True, slots=True)
class Node:
    """An institution, a patient, a study or a section, identified by the whole path to it."""

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


class Hierarchy:
    """All nodes that occur in the records, with their ancestors, in order of first appearance."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = tuple(records)
        self._below: dict[Node, list[int]] = {}
        known: dict[tuple[str, ...], list[list[int]]] = {}  # what a record of this path is added to
        for index, record in enumerate(self.records):
            path = record.path
            if (above := known.get(path)) is None:
                nodes = (Node(path[:depth]) for depth in range(1, len(path) + 1))
                above = known[path] = [self._below.setdefault(node, []) for node in nodes]
            for below in above:
                below.append(index)
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
                close = difflib.get_close_matches(name, ["/".join(end) for end in ends], n=3)
                hint = f"did you mean {' or '.join(close)}?" if close else "`chip tree` lists the nodes"
                raise InputError(f"no node is called so; {hint}", argument="name", value=name)
            case several:
                shown = ", ".join(map(str, several[:5])) + (", ..." if len(several) > 5 else "")
                message = f"{len(several)} nodes are called so; use the path of one: {shown}"
                raise InputError(message, argument="name", value=name)

    def children(self, node: Node | None) -> tuple[Node, ...]:
        """The nodes one level below; of None, the institutions."""
        return tuple(self._children.get(node, ()))

    def records_of(self, node: Node) -> list[int]:
        """Indices of the records at or below the node, ascending; none where the node does not occur."""
        return list(self._below.get(node, ()))

    def count(self, node: Node) -> int:
        """How many records lie at or below the node."""
        return len(self._below.get(node, ()))
