"""From what a model showed, record by record, to means with their intervals, and to what two models have in common."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip.data.chance import chance_accuracy
from chip.data.record import TASKS
from chip.evaluation.attacks import membership
from chip.evaluation.bootstrap import interval, means, weights
from chip.evaluation.config import EvalConfig
from chip.evaluation.general import ABILITY
from chip.evaluation.groups import clusters
from chip.evaluation.metrics.aggregate import harmonic_mean, worst
from chip.evaluation.outputs import EvalOutputs
from chip.evaluation.rows import GAP, HELD_OUT, NO_ATTACK, RETAINED, SPLITS, WORST, ResultRow, in_split

Array = NDArray[np.float64]

LOW_WHERE_KNOWN = ("truth_ratio", "lost_log_probability")
"""Measures that are small where the model knows: then the smaller one is a target's worst."""


@dataclass(frozen=True)
class Mean:
    """A mean over records, or something made of means, and what it is in each bootstrap sample."""

    value: float
    samples: Array | None
    """(count,); None where one cluster says nothing of others."""
    count: int

    def row(self, group: str, split: str, measure: str, attack: str) -> ResultRow:
        return ResultRow(group, split, measure, attack, self.value, *interval(self.samples), self.count)

    def minus(self, other: Mean) -> Mean:
        samples = combine(operator.sub, self.samples, other.samples)
        return Mean(self.value - other.value, samples, self.count + other.count)


class Table:
    """The figures of one model, each computed once."""

    def __init__(self, config: EvalConfig, outputs: EvalOutputs) -> None:
        self.config, self.outputs = config, outputs
        retained = (index for group, indices in config.groups.items() if group != "target" for index in indices)
        self._members = {**config.groups, RETAINED: tuple(sorted(retained))}
        self._means: dict[tuple[str, str, str, str], Mean | None] = {}

    def rows(self) -> Iterator[ResultRow]:
        for attack, name in self.outputs.values:
            for group in self.config.groups:
                yield from self._rows_of(group, name, attack)
            if name == "exact_match":
                for split in (*SPLITS, WORST):
                    gap = self.gap(split, attack)
                    if gap is not None:
                        yield gap.row(GAP, split, "gap", attack)
        yield from self._chances()
        yield from self._harmonic_means()
        yield from self._membership()
        yield from self._general()

    def mean(self, group: str, split: str, measure: str, attack: str) -> Mean | None:
        """None where nothing of it was asked."""
        key = group, split, measure, attack
        if key not in self._means:
            self._means[key] = self._worst(group, measure, attack) if split == WORST else self._over(*key)
        return self._means[key]

    def gap(self, split: str, attack: str) -> Mean | None:
        """How much better the siblings are answered than the target."""
        target, siblings = (self.mean(group, split, "exact_match", attack) for group in ("target", "siblings"))
        return None if target is None or siblings is None else siblings.minus(target)

    def truth_ratios(self, split: str) -> Array:
        indices = self.indices("target", split, self.outputs.values[NO_ATTACK, "truth_ratio"])
        return self.outputs.values[NO_ATTACK, "truth_ratio"][indices]

    def indices(self, group: str, split: str, values: Array) -> list[int]:
        """Those of the group's records that have a value."""
        records = self.config.records
        return [i for i in self._members[group] if in_split(records[i], split) and not np.isnan(values[i])]

    def _over(self, group: str, split: str, measure: str, attack: str) -> Mean | None:
        values = self.outputs.values.get((attack, measure))
        return None if values is None else self._mean_of(group, split, values)

    def _mean_of(self, group: str, split: str, values: Array) -> Mean | None:
        indices = self.indices(group, split, values)
        if not indices:
            return None
        samples = means(values[indices], clusters(self.config.records, indices), self.config.seed, group)
        return Mean(float(values[indices].mean()), samples, len(indices))

    def _worst(self, group: str, measure: str, attack: str) -> Mean | None:
        both = [self.mean(group, split, measure, attack) for split in SPLITS]
        measured = [mean for mean in both if mean is not None]
        if len(measured) < len(both):
            return measured[0] if measured else None
        forgotten = (group == "target") != (measure in LOW_WHERE_KNOWN)
        value = worst(measured[0].value, measured[1].value, forgotten)
        return next(mean for mean in measured if mean.value == value)

    def _rows_of(self, group: str, measure: str, attack: str) -> Iterator[ResultRow]:
        for split in (*SPLITS, WORST):
            mean = self.mean(group, split, measure, attack)
            if mean is not None:
                yield mean.row(group, split, measure, attack)

    def _chances(self) -> Iterator[ResultRow]:
        """What a model that knows nothing of the target would score, beside what is measured."""
        chance = chance_accuracy(self.config.request.hierarchy, self.config.request.partition).numpy()
        measures = {"chance": "exact_match", **{f"{task}_chance": f"{task}_accuracy" for task in TASKS}}
        measured = {name: self.outputs.values.get((NO_ATTACK, measure)) for name, measure in measures.items()}
        for name, values in ((name, values) for name, values in measured.items() if values is not None):
            values = np.where(np.isnan(values), np.nan, chance)
            for group in self.config.groups:
                for split in SPLITS:
                    mean = self._mean_of(group, split, values)
                    if mean is not None:
                        yield mean.row(group, split, name, NO_ATTACK)

    def _harmonic_means(self) -> Iterator[ResultRow]:
        for split in (*SPLITS, WORST):
            target, retained = (self.mean(group, split, "exact_match", NO_ATTACK) for group in ("target", RETAINED))
            if target is not None and retained is not None:
                value = harmonic_mean(1 - target.value, retained.value)
                forgotten = None if target.samples is None else 1 - target.samples
                samples = combine(harmonic_mean, forgotten, retained.samples)
                both = Mean(value, samples, target.count + retained.count)
                yield both.row(RETAINED, split, "forget_retain_harmonic_mean", NO_ATTACK)

    def _membership(self) -> Iterator[ResultRow]:
        members = [self.config.records[index] for index in self.config.members]
        others = self.outputs.never_trained
        if not members or not others:
            return
        samples_of = [
            weights(clusters(records, range(len(records))), self.config.seed, name)
            for name, records in (("members", members), ("never trained", others))
        ]
        attack = f"membership: {'unseen records' if self.config.unseen else 'wrong answers'}"
        for name, (own, other) in self.outputs.membership.items():
            samples = membership.auc_samples(own, other, *samples_of)
            area = Mean(membership.auc(own, other), samples, len(own) + len(other))
            true_positives = Mean(membership.true_positives(own, other), None, area.count)
            yield area.row("target", "trained", f"auc_{name}", attack)
            yield true_positives.row("target", "trained", f"true_positives_{name}", attack)

    def _general(self) -> Iterator[ResultRow]:
        """Means over tokens, or questions; whole texts are drawn for their intervals."""
        for measure, (sums, counts) in self.outputs.general.items():
            drawn = weights(range(len(sums)), self.config.seed, ABILITY)
            samples = (drawn @ sums) / (drawn @ counts) if len(sums) > 1 else None
            mean = Mean(float(sums.sum() / counts.sum()), samples, int(counts.sum()))
            yield mean.row(ABILITY, HELD_OUT, measure, NO_ATTACK)


def combine(combine: Callable[[float, float], float], first: Array | None, second: Array | None) -> Array | None:
    """Two figures made into one, sample by sample."""
    if first is None or second is None:
        return None
    return np.array([combine(*pair) for pair in zip(first.tolist(), second.tolist(), strict=True)])
