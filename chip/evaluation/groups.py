"""Whom a record concerns, seen from what is forgotten: the columns of every table about forgetting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from chip.data.answers import canonical_answer, normalized
from chip.data.hierarchy import Hierarchy, Node
from chip.data.record import LEVELS, Record
from chip.data.request import Partition

GROUPS = ("target", "shared", "siblings", "ancestors", "cousins", "unrelated", "general")

GENERAL = Node(("general",))
"""Where questions are filed that concern no node, such as what an image shows: the model's general ability."""

_PATIENT = LEVELS.index("patient") + 1


def groups(hierarchy: Hierarchy, partition: Partition, general: Node = GENERAL) -> dict[str, tuple[int, ...]]:
    """Each record in one of `GROUPS`, by its index, ascending; a group may be empty.

    - target: what is forgotten;
    - shared: records of a target whose answer its ancestors state too, and no other node of their level: forgetting the
      target must not take it away, and a model retrained without the target knows it;
    - siblings: retained, with a target's parent in common (the institutions have one in common: the hospital world);
    - ancestors: retained, about a node that holds a target, and about none of its children;
    - cousins: retained, with a target's grandparent in common, where that is a node;
    - general: retained, at or below the node `general`;
    - unrelated: all others.
    """
    shared = set(_shared(hierarchy, partition))
    siblings = set(partition.siblings)
    above = {target.path[:depth] for target in partition.targets for depth in range(1, len(target.path))}
    grandparents = [Node(target.path[:-2]) for target in partition.targets if len(target.path) > 2]
    forgotten = set(partition.forget)
    result: dict[str, list[int]] = {group: [] for group in GROUPS}
    for index, record in enumerate(hierarchy.records):
        if index in forgotten:
            group = "shared" if index in shared else "target"
        elif general.contains(record.path):
            group = "general"
        elif index in siblings:
            group = "siblings"
        elif record.path in above:
            group = "ancestors"
        elif any(node.contains(record.path) for node in grandparents):
            group = "cousins"
        else:
            group = "unrelated"
        result[group].append(index)
    return {group: tuple(indices) for group, indices in result.items()}


def _shared(hierarchy: Hierarchy, partition: Partition) -> Iterator[int]:
    """Records of targets that say what an ancestor's own records say, and those of no other node of its level.

    The last condition keeps a `yes`, or a finding that many have, from being taken for the ancestor's.
    """
    own: dict[tuple[str, ...], set[str]] = {}
    for record in hierarchy.records:
        own.setdefault(record.path, set()).add(canonical_answer(record))
    nodes = Counter((len(path), answer) for path, answers in own.items() for answer in answers)
    for target, indices in partition.forget_of.items():
        for index in indices:
            answer = canonical_answer(hierarchy.records[index])
            above = (target.path[:depth] for depth in range(1, len(target.path)))
            if any(answer in own.get(path, ()) and nodes[len(path), answer] == 1 for path in above):
                yield index


def clusters(records: Sequence[Record], indices: Sequence[int]) -> list[tuple[object, ...]]:
    """What of these records must be drawn together when they are drawn again: all of a patient.

    Records above the patients go with their institution. Where only one patient is left, its facts: the wordings that
    ask for one answer about one image.
    """
    patients = [records[i].path[:_PATIENT] for i in indices]
    if len(set(patients)) > 1:
        return list(patients)
    return [(records[i].path, records[i].images, normalized(records[i].answer)) for i in indices]
