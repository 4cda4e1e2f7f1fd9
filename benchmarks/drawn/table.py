"""Rows of drawn worlds, and the table of their means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.reporting import print_table

COLUMNS = (
    *("seed", "level", "edit", "error", "seconds", "strength", "limit", "excess", "largest_change"),
    *("recovered_gap", "from_retrained", "count", "exact_match", "answer_probability", "tasks"),
)
"""Of a row. Groups and tasks are given as [before, after, retrained], a task behind how many questions it has."""
KEPT = ("siblings", "ancestors on its pictures", "other")


def show(rows: Sequence[Mapping[str, Any]], worlds: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the means over worlds, with the worst in brackets, and what was refused."""
    for seed, world in worlds.items():
        if world.get("faults"):
            print(f"world {seed}: {'; '.join(world['faults'])}")
    columns = (
        *("edit", "level", "targets", "refused", "before", "target", "retrained", "apart", "recovered"),
        *(
            "siblings kept",
            "ancestors kept",
            "others kept",
            "generation",
            "choices",
            "cloze",
            "change",
            "strength",
            "s",
        ),
    )
    print_table("Exact match on paraphrased questions: mean (worst)", columns, lines(rows), {0, 1}, width=280)
    for row in rows:
        if row.get("error"):
            print(f"world {row['seed']}, {row.get('level')}: {row['error']}")


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Of each edit and level, what stands in the table."""
    asked = [row for row in rows if row.get("level")]
    for edit, level in dict.fromkeys((row["edit"], row["level"]) for row in asked):
        some = [row for row in asked if (row["edit"], row["level"]) == (edit, level)]
        done = [row for row in some if not row.get("error")]
        counts = [str(len(done)), str(len(some) - len(done))]
        yield [edit or "defaults", level, *counts, *_target(done), *_cost(done)]


def _target(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for when in range(3):
        yield _mean([row["exact_match"]["target"][when] for row in rows], max)
    yield _mean([row["from_retrained"] for row in rows], max)
    yield _mean([row["recovered_gap"] for row in rows], min)


def _cost(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for group in KEPT:
        some = [row["exact_match"][group] for row in rows if group in row["exact_match"]]
        yield _mean([after / before if before else None for before, after, _ in some], min)
    for task in ("generation", "classification", "cloze"):
        yield _mean([row["tasks"][task][2] for row in rows], max)
    yield _mean([row["largest_change"] for row in rows], max)
    strengths = [row["strength"] for row in rows if row["strength"] is not None]
    yield f"{min(strengths):g} to {max(strengths):g}" if strengths else "–"
    yield _mean([row["seconds"] for row in rows], max, digits=0)


def _mean(values: Sequence[float | None], worst: Any, digits: int = 2) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.{digits}f} ({worst(known):.{digits}f})" if known else "–"
