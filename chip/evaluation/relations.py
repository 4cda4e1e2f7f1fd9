"""How a model stands to the one that was retrained without the target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from chip.evaluation.attacks import depth, trace
from chip.evaluation.bootstrap import means
from chip.evaluation.groups import clusters
from chip.evaluation.metrics.aggregate import recovered_gap
from chip.evaluation.metrics.truth_ratio import forget_quality
from chip.evaluation.outputs import EvalOutputs
from chip.evaluation.rows import GAP, NO_ATTACK, RETAINED, SPLITS, WORST, ResultRow
from chip.evaluation.table import Mean, Table, combine

Array = NDArray[np.float64]


def relations(table: Table, reference: Table) -> Iterator[ResultRow]:
    """All figures that two models have in common."""
    for attack in dict.fromkeys(attack for attack, _ in table.outputs.values):
        for split in (*SPLITS, WORST):
            yield from _gaps(table, reference, split, attack)
            yield from _distances(table, reference, split, attack)
    yield from _forget_quality(table, reference)
    yield from _depth(table, reference)
    yield from _trace(table, reference.outputs)


def _gaps(table: Table, reference: Table, split: str, attack: str) -> Iterator[ResultRow]:
    gap, full = table.gap(split, attack), reference.gap(split, attack)
    if gap is not None and full is not None:
        samples = combine(recovered_gap, gap.samples, full.samples)
        recovered = Mean(recovered_gap(gap.value, full.value), samples, gap.count)
        yield recovered.row(GAP, split, "recovered_gap", attack)


def _distances(table: Table, reference: Table, split: str, attack: str) -> Iterator[ResultRow]:
    """Of what is answered about the target: above the retrained model, from it, and below it.

    The recovered gap counts what lies below as success. It is none: someone who asks can tell that something was
    removed.
    """
    own, other = (each.mean("target", split, "exact_match", attack) for each in (table, reference))
    if own is None or other is None:
        return
    above = replace(own.minus(other), count=own.count)
    yield above.row("target", split, "exact_match_above_retrained", attack)
    samples = above.samples
    away = Mean(abs(above.value), None if samples is None else np.abs(samples), own.count)
    below = Mean(max(0.0, -above.value), None if samples is None else np.maximum(0.0, -samples), own.count)
    yield away.row("target", split, "distance_to_retrained", attack)
    yield below.row("target", split, "over_forgetting", attack)


def _forget_quality(table: Table, reference: Table) -> Iterator[ResultRow]:
    for split in SPLITS:
        ratios, retrained = table.truth_ratios(split), reference.truth_ratios(split)
        if len(ratios) and len(retrained):
            statistic, p = forget_quality(ratios, retrained)
            for name, value in (("ks_statistic", statistic), ("ks_p", p)):
                yield Mean(value, None, len(ratios)).row("target", split, name, NO_ATTACK)


def _depth(table: Table, reference: Table) -> Iterator[ResultRow]:
    """The unlearning depth score by split, over the records that have one."""
    config, values = table.config, table.outputs.values
    layers = [attack for attack, name in values if name == depth.LOST and (attack, name) in reference.outputs.values]
    if not layers:
        return
    lost, of_retrained = (
        np.array([each.outputs.values[layer, depth.LOST] for layer in layers]) for each in (table, reference)
    )
    scores = depth.unlearning_depth_score(lost, of_retrained)
    by_split: dict[str, Mean] = {}
    for split in SPLITS:
        indices = table.indices("target", split, scores)
        if indices:
            samples = means(scores[indices], clusters(config.records, indices), config.seed, "target")
            by_split[split] = Mean(float(scores[indices].mean()), samples, len(indices))
    if by_split:
        by_split[WORST] = min(by_split.values(), key=lambda mean: mean.value)
    for split, score in by_split.items():
        yield score.row("target", split, "unlearning_depth_score", depth.Depth.name)


def _trace(table: Table, reference: EvalOutputs) -> Iterator[ResultRow]:
    for name in (name for name in table.outputs.features if name in reference.features):
        own = table.outputs.features[name]
        area, samples = trace.told_apart(own, reference.features[name], table.config.seed)
        yield Mean(area, samples, len(own)).row(RETAINED, "trained", f"trace_auc_{name}", trace.Trace.name)
