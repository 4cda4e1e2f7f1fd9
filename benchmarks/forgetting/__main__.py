"""Forgetting, compared: for each world, model and target, what each method forgets, keeps and leaks.

    python -m benchmarks.forgetting [--world hospital] [--level patient] [--method chip] [--workers 2] [--report]

Everything measured is stored below `~/.cache/chip`, so that a run may be stopped at any time and the next one goes on.
`--quick` does a little of all of it in minutes, from nothing, and shows it; what is committed stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.forgetting.figures import ResultRow, Results, all_rows
from benchmarks.forgetting.gates import gate_of
from benchmarks.forgetting.jobs import SEEDS, Model, Request, Scope, requests
from benchmarks.forgetting.methods import METHODS, RetrainedAgain
from benchmarks.forgetting.pictures import draw
from benchmarks.forgetting.row_files import write_results
from benchmarks.forgetting.running import (
    ALWAYS,
    Job,
    OnDone,
    TrainingJob,
    Work,
    WorkerContext,
    first_jobs,
    rival_jobs,
    workers,
)
from benchmarks.forgetting.summaries import Place
from benchmarks.forgetting.tables import markdown
from benchmarks.reporting import RESULTS as ALL_RESULTS
from chip.cli.console import quiet_libraries

RESULTS = ALL_RESULTS / "forgetting"
QUICK = Scope(
    ("ward",),
    ("llava",),
    ("shielded", "chip", "nullu", "gradient ascent", "random projection"),
    ("patient",),
    seeds=1,
    targets=1,
    attacks_for=("shielded",),
)
"""A world of its own, which is learned in a minute; and methods with their defaults, whatever suits this world."""
FULL_WORLDS = ("hospital", "clinic")

console = Console(stderr=True, highlight=False)


class Run:
    """One start of the command."""

    def __init__(self, scope: Scope, context: WorkerContext, train: bool, measure: bool) -> None:
        self.scope, self._context, self._train, self._measure = scope, context, train, measure
        self.worlds = {name: context.worlds.of(name) for name in scope.worlds}
        self.refused: dict[tuple[Model, str], str] = {}
        """Model and level -> why it is not judged by."""

    @property
    def methods(self) -> tuple[str, ...]:
        return (*ALWAYS, *self.scope.methods)

    def ready(self, model: Model, level: str) -> bool:
        """Whether a level can be judged with this model."""
        subject = self._context.subject(model)
        if not all(training.is_done(self._context) for training in _trainings(model, level)):
            self.refused[model, level] = "not trained"
            return False
        gate = gate_of(subject, level, self._measure)
        faults = ("not asked yet",) if gate is None else gate.faults
        self.refused[model, level] = "; ".join(faults)
        return not faults

    def work(self) -> Iterator[tuple[str, Sequence[Work]]]:
        """What remains to be done, list by list; what others train meanwhile joins in."""
        for seed in range(self.scope.seeds):
            if self._train:
                yield f"seed {seed}, training", self._missing(seed)
            for count in range(1, self.scope.targets + 1):
                for jobs in first_jobs(self.scope, self._requests(seed, count)):
                    yield f"seed {seed}, target {count}", self._remaining(jobs)
            rivals = rival_jobs(self.scope, self._requests(seed), self.results())
            yield f"seed {seed}, rivals attacked", self._remaining(rivals)

    def _missing(self, seed: int) -> list[TrainingJob]:
        """Models that have to be trained."""
        first = requests(self.scope, self.worlds, seed, 1)
        trainings = dict.fromkeys(job for request in first for job in _trainings(request.model, request.level))
        return [training for training in trainings if not training.is_done(self._context)]

    def results(self) -> Results:
        """All that is known of what was asked for."""
        every = (request for seed in range(self.scope.seeds) for request in self._requests(seed))
        return {request: self._context.find(request, (*self.methods, RetrainedAgain.name)) for request in every}

    def expected(self) -> dict[Place, int]:
        """How many results of each method were asked for."""
        return {
            (name, family, level): len(self.scope.targets_of(world, level)) * self.scope.seeds_of(family)
            for name, world in self.worlds.items()
            for family in self.scope.families
            for level in self.scope.levels_of(world)
        }

    def _requests(self, seed: int, count: int | None = None) -> list[Request]:
        return requests(self.scope, self.worlds, seed, count or self.scope.targets, self.ready)

    def _remaining(self, jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if not job.is_done(self._context)]


def _trainings(model: Model, level: str) -> tuple[TrainingJob, ...]:
    """What a level is judged with: the family's first model, by which settings are chosen, the model, the one that it
    is compared with, and the same of the seed before."""
    again = () if model.previous is None else (TrainingJob(model.previous, level),)
    return TrainingJob(replace(model, seed=0)), TrainingJob(model), TrainingJob(model, level), *again


def write(out: Path, run: Run) -> list[ResultRow]:
    """Rows (a file for each world), tables and pictures of what is known."""
    rows = all_rows(run.results())
    out.mkdir(parents=True, exist_ok=True)
    write_results(out, rows)
    refused = [f"{model}, {level}: {why}" for (model, level), why in run.refused.items() if why]
    (out / "tables.md").write_text(markdown(rows, run.expected(), run.methods, refused))
    draw(rows, out)
    return rows


def do_all(run: Run, count: int, folder: Path, device: str | None, tune: bool = True) -> None:
    """What remains to be done, with a bar for each list of jobs."""
    with workers(count, folder, device, tune) as do:
        for what, work in run.work():
            if work:
                with progress(what, len(work)) as on_done:
                    do(work, on_done)


@contextmanager
def progress(what: str, count: int) -> Iterator[OnDone]:
    """A bar on stderr with the time left, and a line for each job that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=count)

        def on_done(done: str) -> None:
            bar.advance(task)
            bar.console.print(f"{datetime.now():%H:%M:%S} {done}", soft_wrap=True, markup=False)

        yield on_done


def main(
    world: Annotated[list[str] | None, typer.Option(help="hospital, clinic or ward; by default the first two.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Families of models, by default all.")] = None,
    level: Annotated[list[str] | None, typer.Option(help="By default all of each world.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="By default all.")] = None,
    seeds: Annotated[int, typer.Option(help="Models of a family, at most.")] = max(SEEDS.values()),
    targets: Annotated[int, typer.Option(help="Of each level, at most.")] = 5,
    attacks: Annotated[bool, typer.Option(help="Attack some of the edited models.")] = True,
    attacks_for: Annotated[list[str] | None, typer.Option(help="Methods; by default ours and the best others.")] = None,
    count: Annotated[int, typer.Option("--workers", help="Processes.")] = 2,
    device: Annotated[str | None, typer.Option(help="By default a GPU, if there is one.")] = None,
    train: Annotated[bool, typer.Option(help="Train models that are missing; else they are left out.")] = True,
    report: Annotated[bool, typer.Option("--report", help="Measure nothing, only write what is known.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A little of everything, in minutes.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for rows, tables and pictures.")] = None,
) -> None:
    """Measure what is not known yet, and write tables of all that is."""
    quiet_libraries()
    full = Scope(
        tuple(world or FULL_WORLDS),
        tuple(model or SEEDS),
        tuple(method or METHODS),
        tuple(level) if level else None,
        seeds,
        targets,
        attacks,
        tuple(attacks_for) if attacks_for else None,
    )
    scope = QUICK if quick else full
    with TemporaryDirectory(prefix="chip-") as folder:
        context = WorkerContext(Path(folder) / "main", device, not quick)
        run = Run(scope, context, train and not report, not report)
        if not report:
            do_all(run, count, Path(folder), device, not quick)
        written = out or (Path(folder) / "results" if quick else RESULTS)
        write(written, run)
        if quick:
            Console(width=200).print(Markdown((written / "tables.md").read_text()))


if __name__ == "__main__":
    typer.run(main)
