"""From results to rows: the figures of each target, and their means over targets and seeds.

The measures are those of `chip.evaluation`; under an attack its name stands behind a bar: `exact_match | ATTACK`.
Beside them:

- `kept`: exact match of a group after, as a share of what it was before;
- `distance_to_retrained`: of the target, |exact match − the retrained model's|;
- `auc_loss_above_retrained | membership: ...` (and of the other scores): less what the retrained model gives;
- `seconds`, `peak_bytes`, `changed_weights`, of the edit; group and split are `model`;
- `failed`: 1 where a method gave nothing, so that its mean is a share;
- `targets`, `seeds`, `results` (of one target and one model) and `attacked` (of these, those that were), of a method:
  how many stand behind its means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.forgetting.jobs import Request
from benchmarks.forgetting.methods import Retrained, RetrainedAgain, Untouched
from benchmarks.forgetting.results import NAN, Result
from chip.evaluation.bootstrap import SAMPLES, interval
from chip.evaluation.rows import GAP, NO_ATTACK

ALL = "all"
"""In place of a target and a seed: the mean over them."""
MODEL = "model"
"""In place of a group and a split: what concerns the whole model."""
REPORTED = "paraphrased"
"""The split that tables show."""
ABOVE = "exact_match_above_retrained"
DISTANCE = "distance_to_retrained"

OF_EACH = {(GAP, REPORTED, "recovered_gap"), ("siblings", REPORTED, "kept")}
"""Figures that are stored of each target; of all others, the means alone."""


@dataclass(frozen=True)
class ResultRow:
    """One figure."""

    world: str
    model: str
    level: str
    target: str
    """Path, or `ALL`."""
    seed: int | str
    method: str
    version: int
    settings: Mapping[str, Any]
    group: str
    split: str
    measure: str
    value: float
    low: float
    high: float
    """95 % bootstrap interval: of a target, over its records; of a mean, over targets and seeds. NaN where none is."""


Results = Mapping[Request, Mapping[str, Result]]
"""Request -> method -> result."""


def all_rows(results: Results) -> list[ResultRow]:
    """Means first, then the figures of each target that tables need."""
    of_targets = [row for request, of_request in results.items() for row in rows_of(request, of_request)]
    stored = [row for row in of_targets if (row.group, row.split, row.measure) in OF_EACH]
    return [*mean_rows(of_targets), *stored]


def rows_of(request: Request, results: Mapping[str, Result]) -> Iterator[ResultRow]:
    """All figures of one target."""
    before, retrained = results.get(Untouched.name), results.get(Retrained.name)
    for method, result in results.items():
        for key, values in _figures(result, before, retrained):
            yield _row(request, method, result, key, values)


def mean_rows(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Over targets and seeds, of rows that are otherwise alike."""
    alike: dict[tuple[str, ...], list[ResultRow]] = {}
    for row in rows:
        if _is_shown(row) and not math.isnan(row.value):
            key = (row.world, row.model, row.level, row.method, row.group, row.split, row.measure)
            alike.setdefault(key, []).append(row)
    means = [_mean(several) for several in alike.values()]
    counted: dict[tuple[str, str, str, str], list[ResultRow]] = {}
    for several in alike.values():
        first = several[0]
        counted.setdefault((first.world, first.model, first.level, first.method), []).extend(several)
    return [*means, *(row for several in counted.values() for row in _counts(several))]


def _is_shown(row: ResultRow) -> bool:
    """Whether its mean is stored: more than this would be read by nobody."""
    measure, _, attack = row.measure.partition(" | ")
    if row.group == MODEL or measure.startswith("auc_"):
        return True
    if attack:
        return (row.group, row.split) == ("target", REPORTED) and measure in ("exact_match", ABOVE)
    if row.split != REPORTED:
        return measure == "recovered_gap" or (row.group, measure) == ("target", "exact_match")
    shown = measure == "kept" and row.group in ("siblings", "unrelated", "general")
    return shown or measure in ("recovered_gap", "exact_match", "leak_at_16", DISTANCE)


def _figures(
    result: Result, before: Result | None, retrained: Result | None
) -> Iterator[tuple[tuple[str, str, str], tuple[float, float, float]]]:
    """(group, split, measure) and value with its interval."""
    for (group, split, measure, attack), values in result.figures.items():
        name = measure if attack == NO_ATTACK else f"{measure} | {attack}"
        yield (group, split, name), values
        if measure == "exact_match" and attack == NO_ATTACK and before is not None:
            yield (group, split, "kept"), (_share(values[0], before.value(group, split, measure)), NAN, NAN)
        plain = (group, measure, attack) == ("target", "exact_match", NO_ATTACK)
        if plain and retrained is not None and (group, split, DISTANCE, attack) not in result.figures:  # an earlier one
            yield (group, split, DISTANCE), (abs(values[0] - retrained.value(group, split, measure)), NAN, NAN)
        if measure.startswith("auc_") and retrained is not None:
            other = retrained.value(group, split, measure, attack)
            yield (group, split, f"{measure}_above_retrained | {attack}"), (values[0] - other, NAN, NAN)
    for name in ("seconds", "peak_bytes", "changed_weights"):
        yield (MODEL, MODEL, name), (getattr(result, name), NAN, NAN)
    yield (MODEL, MODEL, "failed"), (float(result.error is not None), NAN, NAN)


def _share(after: float, before: float) -> float:
    return after / before if before > 0 else NAN


def _row(
    request: Request,
    method: str,
    result: Result,
    key: tuple[str, str, str],
    values: tuple[float, float, float],
) -> ResultRow:
    model = request.model
    where = (model.world, model.family, request.level, request.target, model.seed)
    named = (Retrained.name, RetrainedAgain.name)  # the name of a checkpoint in the cache is no setting
    settings = {} if method in named else result.settings
    return ResultRow(*where, method, result.version, settings, *key, *values)


def _mean(rows: Sequence[ResultRow]) -> ResultRow:
    """Of one figure of several targets and seeds; the interval draws both anew."""
    values = _by_seed_and_target(rows)
    return _over_all(rows[0], rows[0].measure, float(np.nanmean(values)), *interval(samples(values)))


def _counts(rows: Sequence[ResultRow]) -> Iterator[ResultRow]:
    attacked = (row for row in rows if " | " in row.measure)
    counted: dict[str, set[object]] = {
        "targets": {row.target for row in rows},
        "seeds": {row.seed for row in rows},
        "results": {(row.target, row.seed) for row in rows},
        "attacked": {(row.target, row.seed) for row in attacked},
    }
    first = replace(rows[0], group=MODEL, split=MODEL)
    return (_over_all(first, measure, len(distinct), NAN, NAN) for measure, distinct in counted.items())


def _over_all(row: ResultRow, measure: str, value: float, low: float, high: float) -> ResultRow:
    return replace(row, target=ALL, seed=ALL, measure=measure, value=value, low=low, high=high)


def _by_seed_and_target(rows: Sequence[ResultRow]) -> NDArray[np.float64]:
    """(seeds, targets), NaN where one was not measured."""
    seeds, targets = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("seed", "target"))
    values = np.full((len(seeds), len(targets)), np.nan)
    for row in rows:
        values[seeds.index(row.seed), targets.index(row.target)] = row.value
    return values


def samples(values: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64] | None:
    """(SAMPLES,): means of values (seeds, targets) where seeds and targets are drawn anew; None of a single one."""
    if values.size < 2:
        return None
    random = np.random.default_rng(seed)
    of_seeds, of_targets = (
        random.multinomial(count, np.full(count, 1 / count), size=SAMPLES).astype(np.float64) for count in values.shape
    )
    known = ~np.isnan(values)
    total = np.einsum("bs,st,bt->b", of_seeds, np.where(known, values, 0.0), of_targets)
    count = np.einsum("bs,st,bt->b", of_seeds, known.astype(np.float64), of_targets)
    drawn: NDArray[np.float64] = total[count > 0] / count[count > 0]
    return drawn
