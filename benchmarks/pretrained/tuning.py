"""The settings of a method: the best of its grid on one target, by questions that no table reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, replace

from benchmarks.forgetting.methods import BenchmarkMethod
from benchmarks.forgetting.store import atomic_write, method_key
from benchmarks.forgetting.tuning import score
from benchmarks.pretrained.general import SHORT, answers, same_answers
from benchmarks.pretrained.questions import VALIDATION as VALIDATION_QUESTIONS
from benchmarks.pretrained.subjects import PretrainedSubject
from chip.data.record import VALIDATION
from chip.errors import ChipError
from chip.model.loading import VLM
from chip.model.scoring import score_records

LEARNED, TUNED = ("train",), (VALIDATION,)
"""Splits. A method learns from the first; its settings are chosen by the second."""
LEVELS = ("patient", "country")
"""The first target of one of these levels is what settings are chosen on; then they hold for all levels."""


def tuned(kind: type[BenchmarkMethod], subject: PretrainedSubject) -> BenchmarkMethod:
    """The method with the settings that it runs with on every target of this model."""
    steps = subject.options.tuning_steps
    defaults = kind()
    if not kind.tuned:
        return defaults
    grid = spread(kind.grid(), subject.options.trials)
    if steps is not None and any(field.name == "steps" for field in fields(kind)):
        grid = [replace(method, steps=steps) for method in grid]  # type: ignore[call-arg]
    scores = [_trial(method, subject) for method in grid]
    return grid[scores.index(max(scores))]  # of equals the strongest, which the grid has first


def spread(grid: Sequence[BenchmarkMethod], count: int) -> list[BenchmarkMethod]:
    """So many of the grid, from its first to its last, evenly."""
    if count >= len(grid):
        return list(grid)
    places = [round(number * (len(grid) - 1) / max(1, count - 1)) for number in range(count)]
    return [grid[place] for place in places]


def _trial(method: BenchmarkMethod, subject: PretrainedSubject) -> float:
    """How well it does, as `forgetting.tuning.score` has it; measured once, and stored."""
    level = next(level for level in LEVELS if level in subject.targets)
    key = json.dumps([subject.folder.name, subject.targets[level][0], method_key(method)], sort_keys=True)
    file = subject.options.cache / "trials" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"
    if file.exists():
        return float(json.loads(file.read_text()))
    value = _try(method, subject, subject.targets[level][0])
    with atomic_write(file) as beside:
        beside.write_text(json.dumps(value))
    return value


def _try(method: BenchmarkMethod, subject: PretrainedSubject, target: str) -> float:
    """0 where the method fails, as a setting that is too strong may. Plain questions are a group that should stay."""
    try:
        tensors = method.apply(subject.vlm, subject.source, subject.request(target, (*LEARNED, *TUNED)), seed=0)
    except ChipError:
        return 0.0
    prompts = [f"{question} {SHORT}" for question, _ in VALIDATION_QUESTIONS]
    before, said = _asked(subject.vlm, subject, target), answers(subject.vlm, prompts)
    with subject.holding(tensors) as edited:
        after = _asked(edited, subject, target)
        after["general"] = same_answers(said, answers(edited, prompts))
    return score({**before, "general": 1.0}, after, chance=0.0)


def _asked(vlm: VLM, subject: PretrainedSubject, target: str) -> dict[str, float]:
    """Exact match of the validation wordings of each group; the target's without a picture count as the target's."""
    groups = subject.groups(target, lambda record: record.split in TUNED)
    groups["target"] += groups.pop("by name")
    if not groups["target"]:  # of a country that is known in few wordings
        groups = subject.groups(target, lambda record: record.split in LEARNED)
    return {
        name: float(score_records(vlm, [subject.records[i] for i in indices]).exact_match.mean()) if indices else 0.0
        for name, indices in groups.items()
    }
