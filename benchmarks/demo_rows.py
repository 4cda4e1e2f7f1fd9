"""Rows of the demo's benchmark: what they have, what finds them again, and their table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from statistics import mean
from typing import Any

from benchmarks.reporting import print_table
from chip.evaluation.rows import SPLITS

GROUPS = ("target", "siblings", "other")
COLUMNS = (
    *("method", "version", "settings", "level", "target", "seconds", "largest_change"),
    *("groups", "groups_4bit"),
)
"""Of a row; the last two are group -> split -> `MEASURES`, and null where it was not asked."""
MEASURES = (
    *("count", "chance", "exact_match before", "exact_match after"),
    *("answer_probability before", "answer_probability after"),
)
DemoRow = dict[str, Any]


def key_of(row: DemoRow) -> str:
    return key(row["method"], row["version"], row["settings"], row["target"])


def key(method: str, version: int, settings: Mapping[str, Any], target: str) -> str:
    """Settings count by their values: they may be renamed."""
    return json.dumps([method, version, list(settings.values()), target])


def best_of_grid(rows: Iterable[DemoRow]) -> dict[str, Any]:
    """The settings with the largest mean of siblings − target on trained questions."""
    gaps: dict[str, list[float]] = {}
    for row in rows:
        gap = value(row, "siblings") - value(row, "target")
        gaps.setdefault(json.dumps(row["settings"]), []).append(gap)
    settings: dict[str, Any] = json.loads(max(gaps, key=lambda stored: mean(gaps[stored])))
    return settings


def value(
    row: DemoRow, group: str, split: str = "trained", groups: str = "groups", measure: str = "exact_match after"
) -> float:
    return float(row[groups][group][split][MEASURES.index(measure)])


def table_of(rows: Sequence[DemoRow]) -> list[list[str]]:
    """A line for each method and level: means over targets, with the worst target's siblings."""
    by_line: dict[tuple[str, str], list[DemoRow]] = {}
    for row in rows:
        by_line.setdefault((row["method"], row["level"]), []).append(row)
    return [_line(method, level, of_line) for (method, level), of_line in by_line.items()]


def _line(method: str, level: str, rows: Sequence[DemoRow]) -> list[str]:
    chance = (mean(value(row, "target", split, measure="chance") for row in rows) for split in SPLITS)
    return [
        method,
        level,
        str(len(rows)),
        " / ".join(f"{share:.2f}" for share in chance),
        *(_cell(rows, group) for group in GROUPS),
        f"{min(value(row, 'siblings') for row in rows):.2f}",
        f"{max(row['largest_change'] for row in rows):.2f}",
        f"{mean(row['seconds'] for row in rows):.1f}",
    ]


def _cell(rows: Sequence[DemoRow], group: str) -> str:
    """Means of those that have the group: trained / paraphrased (the same at 4 bits)."""
    having = [row for row in rows if row["groups"].get(group)]
    if not having:
        return "–"
    means = (
        mean(value(row, group, split, groups) for row in having) for groups, split in product(COLUMNS[-2:], SPLITS)
    )
    return "{:.2f} / {:.2f} ({:.2f} / {:.2f})".format(*means)


def show(rows: Sequence[DemoRow]) -> None:
    """Print the table."""
    columns = (
        *("method", "level", "targets", "chance", *GROUPS),
        *("worst siblings", "largest ‖ΔW‖/‖W‖", "seconds"),
    )
    title = "exact match after the edit, trained / paraphrased (4 bits)"
    print_table(title, columns, table_of(rows), {0, 1}, width=180)
