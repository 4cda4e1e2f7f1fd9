"""Models are trained and rows measured in several processes, until all is done or the time is over."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import TIMEOUT_MAX
from typing import Any

import torch
import transformers

from benchmarks.forgetting.worlds.world import World
from benchmarks.pretrained.rows import PretrainedRow, measure
from benchmarks.pretrained.subjects import (
    BEFORE,
    Options,
    PretrainedSubject,
    before,
    taught,
    taught_folder,
    write_texts,
)
from benchmarks.pretrained.training import train
from benchmarks.pretrained.world import build
from benchmarks.schedule import cores
from chip.cli.console import quiet_libraries

TEXTS, TRAINING = "texts", "training"


@dataclass(frozen=True)
class Setup:
    """Something that rows need: texts, or a trained model."""

    what: str
    level: str | None = None
    """Of a training: the level whose targets the model never sees."""

    def __str__(self) -> str:
        return self.what if self.level is None else f"{self.what} without the targets of {self.level}"

    def do(self, context: Context) -> None:
        if self.what == TEXTS:
            write_texts(context.options)
            return
        options, world = context.options, context.world
        without = () if self.level is None else world.targets[self.level]
        folder = taught_folder(options, world, self.level)
        train(folder, options.checkpoint, world, options.recipe, without, options.device)


@dataclass(frozen=True)
class RowTask:
    """One row to measure."""

    model: str
    level: str
    target: str
    method: str

    def __str__(self) -> str:
        return f"{self.model}, {self.level}, {self.target}: {self.method}"

    def do(self, context: Context) -> PretrainedRow | None:
        subject = context.before if self.model == BEFORE else context.taught
        return measure(subject, self.level, self.target, self.method, context.folder)


Task = Setup | RowTask


class Context:
    """What a process has open."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder
        folder.mkdir(parents=True)

    @cached_property
    def world(self) -> World:
        return build(self.options.size, self.folder / "world")

    @cached_property
    def taught(self) -> PretrainedSubject:
        return taught(self.options, self.world)

    @cached_property
    def before(self) -> PretrainedSubject:
        return before(self.options)


class Pool:
    """Processes that do tasks, each of which ends in one call of `next`."""

    def __init__(self, processes: Any, jobs: int) -> None:
        self._processes, self._jobs = processes, jobs
        self._done: queue.Queue[tuple[Task, Any, BaseException | None]] = queue.Queue()
        self.open = 0
        """Tasks that have been handed out and not ended."""

    @property
    def free(self) -> bool:
        """Whether a process has nothing to do."""
        return self.open < self._jobs

    def submit(self, task: Task) -> None:
        self.open += 1
        self._processes.apply_async(
            _do,
            (task,),
            callback=lambda result: self._done.put((task, result, None)),
            error_callback=lambda error: self._done.put((task, None, error)),
        )

    def next(self, timeout: float) -> tuple[Task, Any, BaseException | None]:
        """A task that has ended, what it gave, and what broke it.

        Raises:
            queue.Empty: none has within so many seconds.
        """
        done = self._done.get(timeout=min(max(0.0, timeout), TIMEOUT_MAX))
        self.open -= 1
        return done


@contextmanager
def pool(jobs: int, options: Options) -> Iterator[Pool]:
    """`jobs` processes, which end with the context whatever they are doing; what they have written for a while too."""
    with TemporaryDirectory(prefix="chip-pretrained-") as folder:
        arguments = (options, Path(folder), max(1, cores() // jobs))
        processes = multiprocessing.get_context("spawn").Pool(jobs, _open, arguments)
        try:
            yield Pool(processes, jobs)
        finally:
            processes.terminate()
            processes.join()  # nobody writes into the folder any more


_context: Context | None = None
"""Of this process."""


def _open(options: Options, folder: Path, threads: int) -> None:
    global _context
    quiet_libraries()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    _context = Context(options, folder / str(os.getpid()))


def _do(task: Task) -> Any:
    assert _context is not None
    return task.do(_context)
