"""Doing the jobs, in one process or several; what is known already is not done again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isnan
from pathlib import Path
from statistics import fmean
from traceback import format_exception
from typing import Protocol

from benchmarks.forgetting.figures import REPORTED, Results
from benchmarks.forgetting.jobs import Model, Request, Scope
from benchmarks.forgetting.judging import Judge
from benchmarks.forgetting.methods import METHODS, BenchmarkMethod, Retrained, RetrainedAgain, Untouched
from benchmarks.forgetting.methods.edits import ShieldedEdit
from benchmarks.forgetting.models import trained
from benchmarks.forgetting.results import Result
from benchmarks.forgetting.subjects import Subject, Worlds
from benchmarks.forgetting.summaries import TRAINED_NAMES, TRAINING_FREE_NAMES
from benchmarks.forgetting.tuning import tuned_method
from benchmarks.schedule import Pool, Task

ALWAYS = (Retrained.name, Untouched.name)
"""What all others are compared with; `RetrainedAgain` where there is a seed before."""
RIVALS = (TRAINED_NAMES, TRAINING_FREE_NAMES)
"""Of each kind the best is attacked too."""

OnDone = Callable[[str], None]
"""Takes a line for each piece of work that is done, or what broke it."""


class Work(Protocol):
    """Something to do."""

    def do(self, context: WorkerContext) -> None:
        """Nothing where it is done already."""


@dataclass(frozen=True)
class TrainingJob:
    """A model to train."""

    model: Model
    without: str | None = None
    """The level whose targets it never sees."""

    def __str__(self) -> str:
        return f"{self.model}: trained{'' if self.without is None else f' without the targets of {self.without}'}"

    def do(self, context: WorkerContext) -> None:
        subject = context.subject(self.model)
        without = () if self.without is None else subject.world.targets[self.without]
        trained(subject.world, self.model.family, self.model.seed, without, subject.device)

    def is_done(self, context: WorkerContext) -> bool:
        subject = context.subject(self.model)
        return (subject.folder if self.without is None else subject.reference(self.without)).exists()


@dataclass(frozen=True)
class Job:
    """One method to run on one target."""

    request: Request
    method: str
    attacked: bool

    def __str__(self) -> str:
        return f"{self.request}: {self.method}{', attacked' if self.attacked else ''}"

    def do(self, context: WorkerContext) -> None:
        judge, reference, method = context.open(self, measure=True)
        assert method is not None
        judge.judge(reference, reference, self.attacked)
        judge.judge(method, reference, self.attacked)

    def is_done(self, context: WorkerContext) -> bool:
        judge, _, method = context.open(self, measure=False)
        return method is not None and judge.find(method, self.attacked) is not None


def first_jobs(scope: Scope, requests: Sequence[Request]) -> tuple[list[Job], list[Job]]:
    """The retrained model on each target, which all others are compared with; and then those."""
    attacked = (Untouched.name, ShieldedEdit.name) if scope.attacks_for is None else scope.attacks_for
    others = [
        Job(request, name, scope.attacks and name in attacked)
        for request in requests
        for name in (Untouched.name, *scope.methods)
    ]
    retrained = [Job(request, Retrained.name, scope.attacks) for request in requests]
    again = [Job(request, RetrainedAgain.name, scope.attacks) for request in requests if request.model.previous]
    return retrained, [*again, *others]


def rival_jobs(scope: Scope, requests: Iterable[Request], results: Results) -> list[Job]:
    """The best method of each kind under attack: which one that is shows only when all have run."""
    if not scope.attacks or scope.attacks_for is not None:
        return []
    best = ((request, best_of(names, request, results)) for request in requests for names in RIVALS)
    return [Job(request, name, attacked=True) for request, name in best if name is not None]


def best_of(names: Sequence[str], request: Request, results: Results) -> str | None:
    """The method that does least harm at the request's level, over all targets of the family's first model."""
    first = Model(request.model.world, request.model.family, 0)
    harms: dict[str, list[float]] = {}
    for other, by_method in results.items():
        untouched, retrained = by_method.get(Untouched.name), by_method.get(Retrained.name)
        if (other.model, other.level) == (first, request.level) and untouched and retrained:
            for name in set(names).intersection(by_method):
                harms.setdefault(name, []).append(_harm(by_method[name], untouched, retrained))
    known = {name: fmean(values) for name, values in harms.items() if not isnan(fmean(values))}
    return min(known, key=lambda name: known[name], default=None)


def _harm(result: Result, untouched: Result, retrained: Result) -> float:
    """As `MethodSummary.harm`, of one target."""
    target = ("target", REPORTED, "exact_match")
    harm = abs(result.value(*target) - retrained.value(*target))
    for group in ("siblings", "unrelated"):
        before = untouched.value(group, REPORTED, "exact_match")
        if before > 0:
            harm += max(0.0, 1 - result.value(group, REPORTED, "exact_match") / before)
    return harm


class WorkerContext:
    """What a worker process has open: worlds, and models as they are needed."""

    def __init__(self, folder: Path, device: str | None, tune: bool = True) -> None:
        """`tune`: choose the settings of methods; else each has its defaults."""
        self.worlds, self._device, self._tune = Worlds(folder), device, tune
        self._subjects: dict[Model, Subject] = {}
        self._tuned: dict[tuple[str, Model, str], BenchmarkMethod] = {}

    def subject(self, model: Model) -> Subject:
        if model not in self._subjects:
            self._subjects[model] = Subject(self.worlds, model, self._device)
        return self._subjects[model]

    def open(self, job: Job, measure: bool) -> tuple[Judge, Retrained, BenchmarkMethod | None]:
        """Who judges, what by, and what with its settings; None where those are to be measured first, and may not."""
        subject = self.subject(job.request.model)
        reference = Retrained(subject.reference(job.request.level))
        return Judge(subject, job.request), reference, self._method(job.method, job.request, measure)

    def find(self, request: Request, methods: Iterable[str]) -> dict[str, Result]:
        """Method -> what is known of it."""
        judge, results = Judge(self.subject(request.model), request), {}
        for name in methods:
            method = self._method(name, request, measure=False)
            result = None if method is None else judge.find(method, attacked=False)
            if result is not None:
                results[name] = result
        return results

    def _method(self, name: str, request: Request, measure: bool) -> BenchmarkMethod | None:
        if name == Retrained.name:
            return Retrained(self.subject(request.model).reference(request.level))
        if name == RetrainedAgain.name:
            other = request.model.previous
            return None if other is None else RetrainedAgain(self.subject(other).reference(request.level))
        if name == Untouched.name:
            return Untouched()
        if not self._tune:
            return METHODS[name]()
        key = name, Model(request.model.world, request.model.family, 0), request.level
        if key not in self._tuned:
            method = tuned_method(METHODS[name], self.subject(key[1]), request.level, measure)
            if method is None:
                return None
            self._tuned[key] = method
        return self._tuned[key]


Do = Callable[[Sequence[Work], OnDone], None]


@contextmanager
def workers(count: int, folder: Path, device: str | None, tune: bool) -> Iterator[Do]:
    """What does work, each piece in one of several processes. A piece that breaks does not keep others from being done.

    Args:
        folder: for the worlds of each process.
    """
    with Pool(count, partial(_open, folder, device, tune)) as pool:
        yield partial(_do_in, pool)


def _do_in(pool: Pool, work: Sequence[Work], on_done: OnDone) -> None:
    def task(piece: Work) -> Task:
        def then(_: object) -> Sequence[Task]:
            on_done(str(piece))
            return ()

        return Task(0, partial(_do, piece), then, lambda error: on_done(f"{piece}: {''.join(format_exception(error))}"))

    pool.run([task(piece) for piece in work])


_context: WorkerContext | None = None
"""Of this process."""


def _open(folder: Path, device: str | None, tune: bool) -> None:
    global _context
    _context = WorkerContext(folder / str(os.getpid()), device, tune)


def _do(work: Work) -> None:
    assert _context is not None
    work.do(_context)
