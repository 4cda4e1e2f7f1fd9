"""What is done, and in which order: what matters most first, so that a run that is cut short has it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest

from benchmarks.countries import TARGETS as COUNTRIES
from benchmarks.pretrained.rows import FAILED, PretrainedRow
from benchmarks.pretrained.running import TEXTS, TRAINING, RowTask, Setup, do
from benchmarks.pretrained.subjects import BEFORE, LEVEL_BEFORE, TAUGHT
from benchmarks.pretrained.ways import ABLATIONS, COMPARED, OURS, REFERENCES
from benchmarks.schedule import Task

Place = tuple[str, str, str]
"""Model, level, target."""


def row_tasks(
    levels: Mapping[str, Sequence[str]], methods: Collection[str], most: int, country_count: int
) -> list[RowTask]:
    """All rows of these methods.

    Args:
        levels: level -> targets of the model that was taught patients.
        most: targets of a level for the methods that ours are compared with.
        country_count: how many countries are forgotten.
    """
    taught = list(_breadth_first(levels))
    countries: list[Place] = [(BEFORE, LEVEL_BEFORE, country) for country in COUNTRIES[:country_count]]
    first_level = "patient" if "patient" in levels else next(iter(levels), "")
    few: list[Place] = [(TAUGHT, first_level, target) for target in levels.get(first_level, ())[:most]]
    rest = [place for place in _breadth_first({name: all_[:most] for name, all_ in levels.items()}) if place not in few]
    order: list[tuple[Sequence[Place], Collection[str]]] = [
        (taught, REFERENCES),
        ([*taught[: len(levels)], *countries[:1]], OURS),
        (few[:1], [*ABLATIONS, *COMPARED]),
        ([*taught, *countries], OURS),
        (few, ABLATIONS),
        (few[1:], COMPARED),
        (countries, [*REFERENCES, *ABLATIONS]),
        (countries[:most], COMPARED),
        (rest, ABLATIONS),
        (rest, COMPARED),
    ]
    every = (RowTask(*place, name) for places, names in order for place in places for name in names)
    return list(dict.fromkeys(task for task in every if task.method in methods))


def _breadth_first(levels: Mapping[str, Sequence[str]]) -> Iterator[Place]:
    """The first target of each level, then the second of each."""
    for targets in zip_longest(*levels.values()):
        for level, target in zip(levels, targets, strict=True):
            if target is not None:
                yield TAUGHT, level, target


def needs(task: RowTask) -> tuple[Setup, ...]:
    """Texts; and where patients were taught, that training and the one that the row is compared with."""
    if task.model == BEFORE:
        return (Setup(TEXTS),)
    return Setup(TEXTS), Setup(TRAINING), Setup(TRAINING, task.level)


class Run:
    """What is known, and what is still to be done."""

    def __init__(
        self,
        rows: Sequence[RowTask],
        known: Sequence[PretrainedRow],
        on_row: Callable[[list[PretrainedRow]], None],
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            known: rows that are not measured again.
            on_row: called with all rows whenever there is one more.
            say: takes a line for each task that has ended.
        """
        done = {RowTask(row.model, row.level, row.target, row.method) for row in known}
        self.rows, self._on_row, self._say = list(known), on_row, say
        self.waiting = [row for row in rows if row not in done]
        self._places = {row: number for number, row in enumerate(self.waiting, 1)}
        self._missing = dict.fromkeys(setup for row in self.waiting for setup in needs(row))

    def tasks(self) -> list[Task]:
        """All setups, and after them what lacks none, in its order; the other rows follow from setups."""
        return [*map(self._task, self._missing), *self._ready()]

    def _task(self, work: Setup | RowTask) -> Task:
        place = 0 if isinstance(work, Setup) else self._places[work]
        return Task(place, partial(do, work), partial(self._done, work), partial(self._failed, work))

    def _ready(self) -> list[Task]:
        """Rows that lack nothing any more."""
        ready = [row for row in self.waiting if self._missing.keys().isdisjoint(needs(row))]
        self.waiting = [row for row in self.waiting if row not in ready]
        return list(map(self._task, ready))

    def _done(self, work: Setup | RowTask, result: PretrainedRow | None) -> list[Task]:
        self._say(f"{work}{'' if result is None else f': {_brief(result)}'}")
        if isinstance(work, Setup):
            del self._missing[work]
            return self._ready()
        if result is not None:
            self._add(result)
        return []

    def _failed(self, work: Setup | RowTask, error: BaseException) -> None:
        """What needs a setup that failed stays undone."""
        self._say(f"FAILED {work}\n{''.join(traceback.format_exception(error)).rstrip()}")
        if isinstance(work, RowTask):
            self._add(PretrainedRow(work.model, work.level, work.target, work.method, refused=f"{FAILED}{error!r}"))

    def _add(self, row: PretrainedRow) -> None:
        self.rows.append(row)
        self._on_row(self.rows)


def _brief(row: PretrainedRow) -> str:
    """The figures of a row in one line, paraphrased questions."""
    if row.exact_match is None or row.general is None:
        return f"refused: {row.refused}"
    groups = (
        f"{name} {splits['paraphrased']:.2f}" for name, splits in row.exact_match.items() if "paraphrased" in splits
    )
    general = (f"{name} {row.general[name]:.3f}" for name in ("prose", "prose_kl", "same", "ends"))
    cost = "" if row.seconds is None else f", change {row.largest_change:.2f}, {row.seconds:.0f} s"
    return f"{', '.join((*groups, *general))}{cost}{'' if row.refused is None else f' (refused: {row.refused})'}"
