"""Forgetting in worlds, and models, of which everything is drawn from a seed.

    python -m benchmarks.drawn --seeds even|odd|0,2,4 [--device cuda] [--jobs 8] [--edit-args "retain_weight=48"]
                               [--deadline 420] --out FILE --cache DIR

Each world is learned by one model, and by one that never sees any of the world's targets: a patient, a study, and so
on, one of each level. What the models must know is checked first (`Gate`), and what falls short is said, and counts
nowhere. Then each target is forgotten by itself with chip's defaults, or with what `--edit-args` says, and the written
checkpoint is asked the questions in words that nothing was trained on.

Settings and code are chosen on even seeds. A file that odd ones are reported in names each run that was made on them.
Rows are written as they come, and worlds and models are cached: a run may be stopped at any time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from traceback import format_exception_only
from typing import Annotated, Any

import typer

from benchmarks.drawn.edits import EditArguments
from benchmarks.drawn.measuring import RETRAINED, TRAINED, Drawn, build, edit, gate, train
from benchmarks.drawn.table import COLUMNS, show
from benchmarks.reporting import read_rows, store_rows
from benchmarks.schedule import Pool, Task
from chip.cli.console import quiet_libraries
from chip.model.loading import default_device

EVEN, ODD = "even", "odd"
WORLDS = 12
"""Seeds of which `even` and `odd` are half each."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on learning a world."""

    tiny: bool
    steps: int | None
    seconds: float


class Run:
    """One start of the command: what it does, and what is known so far."""

    def __init__(
        self,
        out: Path,
        cache: Path,
        device: str,
        edits: Sequence[EditArguments],
        levels: Sequence[str],
        effort: Effort,
    ) -> None:
        self._out, self._cache, self._device = out, cache, device
        self._edits, self._levels, self._effort = edits, levels, effort
        self._start = time.monotonic()
        self._trained: dict[int, set[str]] = {}
        self._gates: dict[int, set[str]] = {}
        self.rows: list[dict[str, Any]] = []
        self.worlds: dict[str, dict[str, Any]] = {}
        """Seed -> what it was drawn as, and what its model knows."""
        self._runs = [*(read_rows(out)[0]["runs"] if out.exists() else []), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"]

    def first(self, seed: int) -> Task:
        """Drawing a world, from which all else follows."""
        call = partial(build, seed, self._cache, self._effort.tiny, self._effort.steps)
        return self._task(0, call, self._built, {"seed": seed})

    def _built(self, drawn: Drawn) -> list[Task]:
        self._trained[drawn.seed] = set()
        self.worlds[str(drawn.seed)] = dict(drawn.facts)
        self.say(f"world {drawn.seed}: {drawn.model.family}, {drawn.facts['records']:,} records, {drawn.steps} steps")
        return [
            self._task(
                2,
                partial(train, drawn, which, self._device, self._effort.seconds),
                partial(self._has_trained, drawn, which),
                {"seed": drawn.seed},
            )
            for which in (TRAINED, RETRAINED)
        ]

    def _has_trained(self, drawn: Drawn, which: str, done: tuple[float, int]) -> list[Task]:
        seconds, steps = done
        self.say(f"world {drawn.seed}: {which} in {seconds:.0f} s, {steps} steps")
        self.worlds[str(drawn.seed)] |= {f"{which}_seconds": seconds, f"{which}_steps": steps}
        self._trained[drawn.seed].add(which)
        if len(self._trained[drawn.seed]) < 2:
            return []
        of_world = gate(drawn)
        self.worlds[str(drawn.seed)] |= {"learned": dict(of_world.learned), "faults": list(of_world.faults)}
        self.say(f"world {drawn.seed}: " + ("; ".join(of_world.faults) or "passes the gate"))
        self._write()
        if any(": answered by" not in fault for fault in of_world.faults):
            return []
        return [
            self._task(
                1,
                partial(edit, drawn, level, arguments, self._device),
                self._edited,
                {"seed": drawn.seed, "level": level, "edit": arguments.text},
            )
            for arguments in self._edits
            for level, target in drawn.targets.items()
            if (not self._levels or level in self._levels) and not any(target in fault for fault in of_world.faults)
        ]

    def _edited(self, row: dict[str, Any]) -> list[Task]:
        self.rows.append(row)
        self._write()
        if "error" in row:
            self.say(f"world {row['seed']}, {row['level']}: {row['error']}")
        else:
            target, siblings = (row["exact_match"].get(group, [float("nan")] * 3) for group in ("target", "siblings"))
            self.say(
                f"world {row['seed']}, {row['level']} {row['edit']}: target {target[0]:.2f} → {target[1]:.2f} "
                f"(retrained {target[2]:.2f}), siblings {siblings[0]:.2f} → {siblings[1]:.2f}, {row['seconds']:.0f} s"
            )
        return []

    def _task(self, rank: int, call: Any, then: Any, about: dict[str, Any]) -> Task:
        def failed(error: BaseException) -> None:
            self._edited({**about, "error": "".join(format_exception_only(error)).strip()})

        return Task(rank, call, then, failed)

    def _write(self) -> None:
        header = {
            "runs": self._runs,
            "seconds": time.monotonic() - self._start,
            "worlds": self.worlds,
        }
        store_rows(self._out, COLUMNS, self.rows, self._device, **header)

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self._start:5.0f} s  {line}", flush=True)


def seeds_of(text: str) -> list[int]:
    """The seeds that are meant by `even`, `odd`, or numbers with commas."""
    if text in (EVEN, ODD):
        return list(range(int(text == ODD), WORLDS, 2))
    return [int(number) for number in text.split(",")]


def main(
    out: Annotated[Path, typer.Option(help="File for the rows.")],
    cache: Annotated[Path, typer.Option(help="Folder for worlds and models.")],
    seeds: Annotated[str, typer.Option(help="even, odd, or numbers with commas.")] = EVEN,
    device: Annotated[str | None, typer.Option(help="By default a GPU, if there is one.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    edit_args: Annotated[
        list[str] | None, typer.Option(help="Settings, name=value with spaces between; empty: the defaults.")
    ] = None,
    level: Annotated[list[str] | None, typer.Option(help="By default all.")] = None,
    deadline: Annotated[float, typer.Option(help="Seconds after which nothing new is begun.")] = inf,
    steps: Annotated[int | None, typer.Option(help="Of training; by default as many as the records take.")] = None,
    train_seconds: Annotated[float, typer.Option(help="That a training may take.")] = inf,
    tiny: Annotated[bool, typer.Option("--tiny", help="The smallest worlds and models, for tests.")] = False,
) -> None:
    """Make the worlds, forget their targets, and print what that gave."""
    quiet_libraries()
    edits = [EditArguments.read(text) for text in edit_args or [""]]
    this = Run(out, cache, device or default_device(), edits, level or (), Effort(tiny, steps, train_seconds))
    with Pool(jobs) as pool:
        left = pool.run([this.first(seed) for seed in seeds_of(seeds)], deadline)
    if left:
        this.say(f"{left} pieces of work were not begun before the deadline")
    show(this.rows, this.worlds)


if __name__ == "__main__":
    typer.run(main)
