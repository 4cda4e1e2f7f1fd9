"""SHA-256 of files and of ranges of their bytes, several files at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chip.checkpoint.threads import in_threads

_BLOCK = 1 << 20

Range = tuple[int, int]
"""First byte, and the byte after the last."""


@dataclass(frozen=True, slots=True)
class Digest:
    """SHA-256 of a file in whole and in parts, in hexadecimal."""

    bytes: int
    whole: str
    outside: str
    """Of the bytes that lie in none of the ranges, in their order."""
    inside: tuple[str, ...]
    """Of each range."""


def digest(path: Path, ranges: Sequence[Range] = ()) -> Digest:
    """Read a file once and hash it, and each of `ranges` (sorted, apart from each other) by itself."""
    whole, outside = hashlib.sha256(), hashlib.sha256()
    inside = [hashlib.sha256() for _ in ranges]
    size = 0
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(_BLOCK)
        for begin, end, number in _pieces(ranges, os.fstat(file.fileno()).st_size):
            parts = [whole] if not ranges else [whole, outside if number is None else inside[number]]
            while begin < end and (count := file.readinto(memoryview(buffer)[: min(_BLOCK, end - begin)])):
                for part in parts:
                    part.update(memoryview(buffer)[:count])
                begin += count
                size += count
    rest = outside if ranges else whole
    return Digest(size, whole.hexdigest(), rest.hexdigest(), tuple(part.hexdigest() for part in inside))


def digest_all(
    jobs: Sequence[tuple[Path, Sequence[Range]]], advance: Callable[[int], None] = lambda _: None
) -> list[Digest]:
    """`digest` of each file with its ranges, in the order given; several at a time, the large ones first.

    `advance` is called with 1 after each.
    """
    order = sorted(range(len(jobs)), key=lambda i: -jobs[i][0].stat().st_size)
    digests: dict[int, Digest] = {}
    with in_threads(digest, [jobs[i] for i in order]) as results:
        for i, result in zip(order, results, strict=True):
            digests[i] = result
            advance(1)
    return [digests[i] for i in range(len(jobs))]


def _pieces(ranges: Sequence[Range], size: int) -> Iterator[tuple[int, int, int | None]]:
    """The file from its first byte to its last: begin, end, and which of the ranges (None: between them)."""
    position = 0
    for number, (begin, end) in enumerate(ranges):
        yield position, begin, None
        yield begin, end, number
        position = end
    yield position, size, None
