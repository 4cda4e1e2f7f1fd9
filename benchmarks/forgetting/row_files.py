"""Rows as they are committed: a file for each world, and a line for each method on one target, or on all.

A line's `values` are [figure, value, low, high], where `figure` counts in the file's list of (group, split, measure).
Files written earlier have earlier names of some; those who read them get the names of today.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.forgetting.figures import ResultRow
from benchmarks.forgetting.results import NAN, current_name
from benchmarks.forgetting.store import PROTOCOL
from benchmarks.reporting import read_rows, write_rows

SHARED = ("model", "level", "target", "seed", "method", "version", "settings")
"""What the figures of a line have in common."""
DIGITS = 4  # significant


def write_results(folder: Path, rows: Sequence[ResultRow]) -> None:
    """Write `WORLD.json` of each world into `folder`."""
    for world in dict.fromkeys(row.world for row in rows):
        of_world = [row for row in rows if row.world == world]
        keys = list(dict.fromkeys((row.group, row.split, row.measure) for row in of_world))
        lines = _lines(of_world, {key: number for number, key in enumerate(keys)})
        header = {"world": world, "protocol": PROTOCOL, "figures": [list(key) for key in keys]}
        write_rows(folder / f"{world}.json", (*SHARED, "values"), lines, **header)


def read_results(file: Path) -> list[ResultRow]:
    """The rows of a world: figures of one method stand together, in the order in which they were written."""
    header, lines = read_rows(file)
    return [row for line in lines for row in _rows(header["world"], header["figures"], line)]


def _lines(rows: Iterable[ResultRow], numbers: dict[tuple[str, str, str], int]) -> Iterator[list[Any]]:
    together: dict[tuple[Any, ...], list[ResultRow]] = {}
    for row in rows:
        together.setdefault((row.model, row.level, row.target, row.seed, row.method), []).append(row)
    for of_line in together.values():
        figures = [
            [numbers[row.group, row.split, row.measure], *map(_stored, (row.value, row.low, row.high))]
            for row in of_line
        ]
        yield [*(getattr(of_line[0], name) for name in SHARED), figures]


def _stored(value: float) -> float | None:
    """NaN, which JSON has not, as null."""
    return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")


def _rows(world: str, keys: Sequence[Sequence[str]], line: dict[str, Any]) -> Iterator[ResultRow]:
    shared = {name: line[name] for name in SHARED}
    for number, *values in line["values"]:
        group, split, measure = map(current_name, keys[number])
        value, low, high = (NAN if stored is None else stored for stored in values)
        yield ResultRow(
            world=world, **shared, group=group, split=split, measure=measure, value=value, low=low, high=high
        )
