"""Rows by method: a summary of each method, and a table of them for each world, model and level."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from benchmarks.forgetting.figures import ABOVE, ALL, DISTANCE, MODEL, REPORTED, ResultRow
from benchmarks.forgetting.methods import CLOSED_FORM, METHODS, TRAINED, Retrained, RetrainedAgain, Untouched
from benchmarks.forgetting.methods.authors import AuthorsChip
from benchmarks.forgetting.methods.edits import ChipEdit, ShieldedEdit
from benchmarks.forgetting.results import NAN
from chip.evaluation.attacks.relearning import BUDGETS
from chip.evaluation.rows import GAP

OUR = ShieldedEdit.name
ORDER = (Untouched.name, Retrained.name, RetrainedAgain.name, *METHODS)
TRAINED_NAMES = tuple(kind.name for kind in TRAINED)
TRAINING_FREE_NAMES = (ChipEdit.name, AuthorsChip.name, *(kind.name for kind in CLOSED_FORM))
"""Ours left out."""


@dataclass
class MethodSummary:
    """A method's figures at one level of one model's world: a line of a table."""

    method: str
    means: dict[tuple[str, str, str], ResultRow] = field(default_factory=dict)
    """(group, split, measure) -> mean over targets and seeds."""
    of_targets: dict[tuple[str, str, str], list[ResultRow]] = field(default_factory=dict)
    """The same -> figures of targets."""
    retrained: float = NAN
    """The target's exact match with the retrained model, its mean over targets and seeds."""

    def mean(self, group: str, measure: str, split: str = REPORTED) -> ResultRow | None:
        return self.means.get((group, split, measure))

    def value(self, group: str, measure: str, split: str = REPORTED) -> float:
        row = self.mean(group, measure, split)
        return NAN if row is None else row.value

    def of_model(self, measure: str) -> float:
        return self.value(MODEL, measure, MODEL)

    def worst(self, group: str, measure: str) -> float:
        """The lowest of all targets and seeds."""
        return min(
            (row.value for row in self.of_targets.get((group, REPORTED, measure), ()) if row.value == row.value),
            default=NAN,
        )

    @property
    def recovered(self) -> float:
        return self.value(GAP, "recovered_gap")

    @property
    def below_retrained(self) -> bool:
        """Whether it over-forgets: the target is answered less than the retrained model answers it."""
        return self.value("target", "exact_match") < self.retrained

    @property
    def distance(self) -> float:
        """|target − retrained|: its mean over targets and seeds, or of rows that lack it the distance of the means."""
        stored = self.value("target", DISTANCE)
        return abs(self.value("target", "exact_match") - self.retrained) if stored != stored else stored

    @property
    def harm(self) -> float:
        """What methods are ranked by, the least first: the distance, and what siblings and unrelated lose.

        At equal retention that is the distance alone, which takes forgetting too well for no success.
        """
        kept = [self.value(group, "kept") for group in ("siblings", "unrelated")]
        return self.distance + sum(max(0.0, 1 - share) for share in kept if share == share)

    @property
    def worst_attack(self) -> ResultRow | None:
        """Above retrained, on the target; relearning is looked at by itself."""
        return self._largest(lambda row: row.value, "target", REPORTED, ABOVE, but="relearning")

    @property
    def relearned(self) -> float:
        """Above retrained, after the smallest budget."""
        return self.value("target", f"{ABOVE} | relearning: {min(BUDGETS)} steps")

    @property
    def membership(self) -> ResultRow | None:
        """Of the score that tells most about the target, how far its AUC is from the retrained model's."""
        return self._largest(lambda row: abs(row.value), "target", "trained", "auc_", but="no other")

    def _largest(
        self, key: Callable[[ResultRow], float], group: str, split: str, start: str, but: str
    ) -> ResultRow | None:
        rows = (
            row
            for (of, on, measure), row in self.means.items()
            if (of, on) == (group, split) and measure.startswith(start) and "_above_retrained | " in measure
            if not measure.partition(" | ")[2].startswith(but)
        )
        return max(rows, key=key, default=None)


Table = dict[str, MethodSummary]
"""Method -> its line, in the order in which methods are shown."""
Place = tuple[str, str, str]
"""World, model, level."""


def tables(rows: Iterable[ResultRow]) -> dict[Place, Table]:
    """In the order in which they first appear."""
    by_place: dict[Place, Table] = {}
    for row in rows:
        line = by_place.setdefault((row.world, row.model, row.level), {}).setdefault(
            row.method, MethodSummary(row.method)
        )
        key = (row.group, row.split, row.measure)
        if row.target == ALL:
            line.means[key] = row
        else:
            line.of_targets.setdefault(key, []).append(row)
    for table in by_place.values():
        retrained = table.get(Retrained.name, MethodSummary(Retrained.name)).value("target", "exact_match")
        for line in table.values():
            line.retrained = retrained
    return {place: {name: table[name] for name in ORDER if name in table} for place, table in by_place.items()}


def best(table: Mapping[str, MethodSummary], names: Iterable[str]) -> MethodSummary | None:
    """The line among `names` that does least harm."""
    lines = (table[name] for name in names if name in table)
    known = (line for line in lines if line.harm == line.harm)
    return min(known, key=lambda line: line.harm, default=None)
