"""What is done with a drawn world: building it, training its two models, and forgetting its targets.

All of it lies in one folder, named by what it was drawn as, so that another run goes on where one was stopped.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import isnan
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import chip
from benchmarks.drawn.draws import ModelDraw, draw_model
from benchmarks.drawn.edits import EditArguments
from benchmarks.drawn.families import family_of
from benchmarks.drawn.training import learn, steps_for
from benchmarks.drawn.world import NAME_OF_WORLD, groups_of, plan
from benchmarks.forgetting.gates import LEARNED, Gate
from benchmarks.forgetting.models import remaining, texts_of, untrained, write_model
from benchmarks.forgetting.store import atomic_write
from benchmarks.forgetting.worlds import World
from benchmarks.forgetting.worlds.files import write
from benchmarks.reporting import largest_change
from chip.data.chance import mean_over
from chip.data.record import TASKS
from chip.errors import ChipError, ChipWarning
from chip.evaluation.metrics.aggregate import recovered_gap
from chip.evaluation.rows import in_split
from chip.model.loading import load_vlm
from chip.model.scoring import score_records

TRAINED, RETRAINED = "trained", "retrained"
"""The model that knows everything, and the one that was trained without any of the targets: each level has one."""
REPORTED = "paraphrased"


@dataclass(frozen=True)
class Drawn:
    """A world on disk, and what it was drawn as."""

    seed: int
    folder: Path
    digest: str
    model: ModelDraw
    steps: int
    """Of training."""
    facts: Mapping[str, Any]
    """What is said of it beside rows."""
    targets: Mapping[str, str]
    """Level -> the node to forget."""

    def open(self) -> World:
        """The world itself; read once in a process."""
        return _open(self.folder, self.seed, self.digest, tuple(self.targets.items()))

    def checkpoint(self, which: str) -> Path:
        return self.folder / which


@lru_cache(maxsize=4)
def _open(folder: Path, seed: int, digest: str, targets: tuple[tuple[str, str], ...]) -> World:
    return World(NAME_OF_WORLD, seed, folder / "world", digest, (), {level: (node,) for level, node in targets})


def build(seed: int, cache: Path, tiny: bool, steps: int | None) -> Drawn:
    """Draw a world and write it below `cache`, unless it lies there.

    Args:
        tiny: as small as can be, for tests.
        steps: of training; by default as many as its records take.
    """
    spec, sizes = plan(seed, tiny)
    model = draw_model(seed, len(spec.pictures), tiny)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        world = write(NAME_OF_WORLD, seed, spec, Path(scratch) / "world")
        records = world.hierarchy.records
        steps = steps_for(sum(not record.held_out for record in records)) if steps is None else steps
        key = json.dumps([world.digest, asdict(model), steps])
        folder = cache / f"{seed}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        folder.mkdir(exist_ok=True)
        if not (folder / "world").exists():
            world.folder.rename(folder / "world")
    facts = {
        "facts": len(spec.facts),
        "records": len(records),
        "pictures": len(spec.pictures),
        "tokens_per_column": len(spec.pictures) * model.image_tokens / model.connector_width,
        "steps": steps,
        "model": asdict(model),
        "world": asdict(sizes),
    }
    targets = {level: target for level, (target,) in world.targets.items()}
    return Drawn(seed, folder, world.digest, model, steps, facts, targets)


def train(drawn: Drawn, which: str, device: str, seconds: float) -> tuple[float, int]:
    """Train one of a world's models, unless it is there, and ask what was written everything; seconds it took, and
    steps of training.

    Args:
        seconds: that training may take.
    """
    start, steps, world = time.monotonic(), 0, drawn.open()
    folder = drawn.checkpoint(which)
    if not folder.exists():
        family = family_of(drawn.model)
        texts = texts_of(world.hierarchy.records)
        vlm = untrained(texts, family, drawn.seed, device)
        records = remaining(world, () if which == TRAINED else tuple(drawn.targets.values()))
        steps = learn(vlm, records, drawn.steps, drawn.seed, seconds)
        write_model(vlm, texts, family, folder)
    scores = _scores_file(drawn, which)
    if not scores.exists():
        values = score_records(load_vlm(folder, device), world.hierarchy.records)
        with atomic_write(scores) as file:
            file.write_text(json.dumps([values.exact_match.tolist(), values.answer_probability.tolist()]))
    return time.monotonic() - start, steps


def _scores_file(drawn: Drawn, which: str) -> Path:
    return drawn.folder / f"{which}.json"


def scores(drawn: Drawn, which: str) -> tuple[Tensor, Tensor]:
    """(records,) fp64 each: exact match and answer probability, as the written checkpoint has them."""
    exact, probability = json.loads(_scores_file(drawn, which).read_text())
    return torch.tensor(exact, dtype=torch.float64), torch.tensor(probability, dtype=torch.float64)


def gate(drawn: Drawn) -> Gate:
    """Whether the model has learned its world, and each target better than the retrained one has."""
    world = drawn.open()
    known, unknown = scores(drawn, TRAINED)[0], scores(drawn, RETRAINED)[0]
    records = world.hierarchy.records
    learned = {
        split: mean_over(known, [i for i, record in enumerate(records) if record.split == split]) for split in LEARNED
    }
    margins = {}
    for target in drawn.targets.values():
        own = [i for i in groups_of(world, target)["target"] if records[i].split in LEARNED]
        margins[target] = mean_over(known, own) - mean_over(unknown, own)
    return Gate(learned, margins)


def edit(drawn: Drawn, level: str, arguments: EditArguments, device: str | None) -> dict[str, Any]:
    """Forget a level's target, and ask the written checkpoint: a row, or why there is none under `error`."""
    target = drawn.targets[level]
    row: dict[str, Any] = {"seed": drawn.seed, "level": level, "edit": arguments.text}
    with tempfile.TemporaryDirectory(dir=drawn.folder) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ChipWarning)
        try:
            report = chip.edit(
                drawn.checkpoint(TRAINED),
                [target],
                records=drawn.open().records_file,
                out=Path(scratch) / "edited",
                method=arguments.method,
                device=device,
                accept=True,
                **arguments.others,
            )
        except ChipError as error:
            return {**row, "error": str(error)}
        figures = _figures(drawn, target, Path(scratch) / "edited", device)
    choice = report.choice
    return {
        **row,
        "seconds": report.seconds,
        "strength": None if choice is None else choice.value,
        "limit": None if choice is None else choice.limit,
        "excess": {loss.group: loss.lost for loss in sorted(report.outcome.excess, key=attrgetter("lost"))},
        "largest_change": largest_change(report.relative_change),
        **figures,
    }


def _figures(drawn: Drawn, target: str, written: Path, device: str | None) -> dict[str, Any]:
    """What the written checkpoint answers of the reported questions, beside the two others."""
    world = drawn.open()
    records = world.hierarchy.records
    reported = [i for i, record in enumerate(records) if in_split(record, REPORTED)]
    edited = score_records(load_vlm(written, device), [records[i] for i in reported])
    after = tuple(
        torch.full((len(records),), torch.nan, dtype=torch.float64).index_put((torch.tensor(reported),), values)
        for values in (edited.exact_match, edited.answer_probability)
    )
    models = (scores(drawn, TRAINED), after, scores(drawn, RETRAINED))
    groups = {
        group: [i for i in indices if in_split(records[i], REPORTED)]
        for group, indices in groups_of(world, target).items()
    }
    exact = {group: [mean_over(model[0], indices) for model in models] for group, indices in groups.items() if indices}
    tasks = {task: [i for i in groups["target"] if records[i].task == task] for task in TASKS}
    sure = {group: [mean_over(model[1], groups[group]) for model in models] for group in exact}
    result = {
        "count": {group: len(groups[group]) for group in exact},
        "exact_match": exact,
        "answer_probability": {group: [None if isnan(p) else p for p in values] for group, values in sure.items()},
        "tasks": {task: [len(own), *(mean_over(model[0], own) for model in models)] for task, own in tasks.items()},
        "from_retrained": abs(exact["target"][1] - exact["target"][2]),
        "recovered_gap": None,
    }
    if "siblings" in exact:
        gap, full = (exact["siblings"][i] - exact["target"][i] for i in (1, 2))
        result["recovered_gap"] = None if full <= 0 else recovered_gap(gap, full)
    return result
