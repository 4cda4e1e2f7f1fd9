"""The settings of a method: the best of its grid by the validation wordings, which no table reports."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.forgetting.jobs import Request
from benchmarks.forgetting.methods import Method
from benchmarks.forgetting.questions import CHOSEN, LEARNED, MAX_QUESTIONS, questions
from benchmarks.forgetting.store import Store, of_method
from benchmarks.forgetting.subjects import Subject
from chip.data.chance import chance_accuracy, mean_over
from chip.errors import ChipError
from chip.evaluation.metrics.aggregate import harmonic_mean
from chip.model.loading import VLM
from chip.model.scoring import score_records

TUNING_TARGETS = 1
"""Of each level, the first ones, of the family's first model."""


def chosen(kind: type[Method], subject: Subject, level: str, measure: bool = True) -> Method | None:
    """The method with the settings it runs with on every target of a level, whatever the model's seed.

    Args:
        subject: the family's first model.
        measure: try what has not been tried yet; without, None where something has not.
    """
    if not kind.tuned:
        return kind()
    targets = subject.world.targets[level][:TUNING_TARGETS]
    scores = {}
    for method in kind.grid():
        tried = [_tried(method, Request(subject.model, level, target), subject, measure) for target in targets]
        if None in tried:
            return None
        scores[method] = sum(each for each in tried if each is not None)
    return max(scores, key=lambda method: scores[method])  # of equals the strongest, which the grid has first


def score(before: dict[str, float], after: dict[str, float], chance: float) -> float:
    """Harmonic mean of how much was forgotten and how much kept, 0 to 1.

    Forgotten is the share of what the target was answered above chance; kept the smallest of the shares that the
    groups that stay are still answered.

    Args:
        before, after: group -> exact match; `target`, and those that stay.
        chance: of the target.
    """
    room = before["target"] - chance
    forgotten = (before["target"] - after["target"]) / room if room > 0 else 0.0
    others = [group for group in before if group != "target" and before[group] > 0]  # some have no records
    kept = min((min(1.0, after[group] / before[group]) for group in others), default=0.0)
    return harmonic_mean(min(1.0, max(0.0, forgotten)), kept)


def _tried(method: Method, request: Request, subject: Subject, measure: bool) -> float | None:
    store = Store("trials")
    what = {
        "world": request.model.world,
        "digest": subject.world.digest,
        "checkpoint": subject.folder.name,
        "target": request.target,
        "asked": [*CHOSEN, MAX_QUESTIONS],
        **of_method(method),
    }
    found = store.read(what)
    if found is None and measure:
        found = {"score": _try(method, request, subject)}
        store.write(what, found)
    return None if found is None else float(found["score"])


def _try(method: Method, request: Request, subject: Subject) -> float:
    """0 where the method fails, as a setting that is too strong may."""
    forget = questions(subject.world, request.target, LEARNED).request
    try:
        tensors = method.apply(subject.vlm, subject.source, forget, request.model.seed)
    except ChipError:
        return 0.0
    before = _answered(subject.vlm, request, subject)
    with subject.holding(tensors) as edited:
        after = _answered(edited, request, subject)
    asked = questions(subject.world, request.target, CHOSEN)
    chance = chance_accuracy(asked.request.hierarchy, asked.request.partition)
    return score(before, after, mean_over(chance, asked.groups["target"]))


def _answered(vlm: VLM, request: Request, subject: Subject) -> dict[str, float]:
    """Exact match of the validation wordings: of the target, of its siblings, and of all others that stay."""
    asked = questions(subject.world, request.target, CHOSEN, MAX_QUESTIONS)
    records = asked.request.hierarchy.records
    exact: Tensor = score_records(vlm, records).exact_match
    others = [i for group, of in asked.groups.items() if group not in ("target", "shared", "siblings") for i in of]
    groups = {"target": asked.groups["target"], "siblings": asked.groups["siblings"], "other": others}
    return {group: mean_over(torch.nan_to_num(exact), indices) for group, indices in groups.items()}
