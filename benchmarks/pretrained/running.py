"""What one process does: models are trained, and rows measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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


_context: Context | None = None
"""Of this process."""


def open_context(options: Options, folder: Path) -> None:
    """In a process that is to do tasks, once."""
    global _context
    _context = Context(options, folder / str(os.getpid()))


def do(task: Task) -> PretrainedRow | None:
    """In such a process."""
    assert _context is not None
    return task.do(_context)
