"""What records ask for: the wordings of one question are one fact."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from chip.data.answers import canonical_answer
from chip.data.record import Record


def fact(record: Record) -> Hashable:
    """Equal for records that ask for one answer at one node, about one image: the same fact, worded otherwise."""
    return record.path, record.images, canonical_answer(record)


def facts(records: Sequence[Record], indices: Sequence[int]) -> dict[Hashable, list[int]]:
    """The records at `indices` by what they ask for, in order of first appearance."""
    found: dict[Hashable, list[int]] = {}
    for index in indices:
        found.setdefault(fact(records[index]), []).append(index)
    return found
