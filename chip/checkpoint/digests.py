"""SHA-256 of files and of ranges of their bytes, several files at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1 << 20
_WORKERS = min(8, os.cpu_count() or 1)  # hashing leaves Python's lock, and one thread hashes slower than disks read

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
    parts_outside = outside if ranges else whole
    return Digest(size, whole.hexdigest(), parts_outside.hexdigest(), tuple(part.hexdigest() for part in inside))


def digest_all(jobs: Iterable[tuple[Path, Sequence[Range]]]) -> list[Digest]:
    """`digest` of each file with its ranges, in the order given; several at a time, the large ones first."""
    listed = list(jobs)
    order = sorted(range(len(listed)), key=lambda i: -listed[i][0].stat().st_size)
    with ThreadPoolExecutor(_WORKERS) as pool:
        running = {i: pool.submit(digest, *listed[i]) for i in order}
        return [running[i].result() for i in range(len(listed))]


def _pieces(ranges: Sequence[Range], size: int) -> Iterator[tuple[int, int, int | None]]:
    """The file from its first byte to its last: begin, end, and which of the ranges (None: between them)."""
    position = 0
    for number, (begin, end) in enumerate(ranges):
        yield position, begin, None
        yield begin, end, number
        position = end
    yield position, size, None
