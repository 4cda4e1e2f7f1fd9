"""The settings of a method: the best of its grid by the validation wordings, which no table reports."""

from __future__ import annotations

import torch

from benchmarks.forgetting.jobs import Request
from benchmarks.forgetting.methods import BenchmarkMethod
from benchmarks.forgetting.questions import LEARNED, MAX_QUESTIONS, TUNED, questions
from benchmarks.forgetting.store import Store, method_key
from benchmarks.forgetting.subjects import Subject
from chip.data.chance import chance_accuracy, mean_over
from chip.errors import ChipError
from chip.evaluation.metrics.aggregate import harmonic_mean
from chip.model.loading import VLM
from chip.model.scoring import score_records

TUNING_TARGETS = 1
"""Of each level, the first ones, of the family's first model."""


def tuned_method(
    kind: type[BenchmarkMethod], subject: Subject, level: str, measure: bool = True
) -> BenchmarkMethod | None:
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
        trials = [_trial(method, Request(subject.model, level, target), subject, measure) for target in targets]
        known = [score for score in trials if score is not None]
        if len(known) < len(trials):
            return None
        scores[method] = sum(known)
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
    retained = min((min(1.0, after[group] / before[group]) for group in others), default=0.0)
    return harmonic_mean(min(1.0, max(0.0, forgotten)), retained)


def _trial(method: BenchmarkMethod, request: Request, subject: Subject, measure: bool) -> float | None:
    store = Store("trials")
    key = {
        **request.model.key,
        "digest": subject.world.digest,
        "checkpoint": subject.folder.name,
        "target": request.target,
        **method_key(method),
    }
    value = store.read(key)
    if value is None and measure:
        value = {"score": _try(method, request, subject)}
        store.write(key, value)
    return None if value is None else float(value["score"])


def _try(method: BenchmarkMethod, request: Request, subject: Subject) -> float:
    """0 where the method fails, as a setting that is too strong may."""
    learned = questions(subject.world, request.target, LEARNED).request
    try:
        tensors = method.apply(subject.vlm, subject.source, learned, request.model.seed)
    except ChipError:
        return 0.0
    before = _answered(subject.vlm, request, subject)
    with subject.holding(tensors) as edited:
        after = _answered(edited, request, subject)
    validation = questions(subject.world, request.target, TUNED)
    chance = chance_accuracy(validation.request.hierarchy, validation.request.partition)
    return score(before, after, mean_over(chance, validation.groups["target"]))


def _answered(vlm: VLM, request: Request, subject: Subject) -> dict[str, float]:
    """Exact match of the validation wordings: of the target, of its siblings, and of all others that stay."""
    validation = questions(subject.world, request.target, TUNED, MAX_QUESTIONS)
    exact = torch.nan_to_num(score_records(vlm, validation.request.hierarchy.records).exact_match)
    apart = ("target", "shared", "siblings")
    others = [i for group, indices in validation.groups.items() if group not in apart for i in indices]
    groups = {**{name: validation.groups[name] for name in ("target", "siblings")}, "other": others}
    return {group: mean_over(exact, indices) for group, indices in groups.items()}
