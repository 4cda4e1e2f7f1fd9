"""What our figures must be, and whether they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.forgetting.methods import RetrainedAgain
from benchmarks.forgetting.results import NAN
from benchmarks.forgetting.summaries import OUR, TRAINED_NAMES, TRAINING_FREE_NAMES, MethodSummary, Place, Table, best
from chip.evaluation.rows import GAP

RECOVERED = {"institution": 0.95, "patient": 0.95, "study": 0.95, "section": 0.85}
"""Level -> recovered gap, mean. For others none is set."""
RECOVERED_WORST = {"institution": 0.85, "patient": 0.85, "study": 0.85}
KEPT, KEPT_WORST, ELSEWHERE = 0.97, 0.92, 0.99
ATTACKED, RELEARNED, MEMBERSHIP = 0.05, 0.10, 0.1
TIME = 1 / 3


@dataclass(frozen=True)
class Check:
    """One bound at one place."""

    place: Place
    what: str
    """The bound, in words."""
    value: float
    least: float | None = None
    most: float | None = None
    note: str = ""
    again: float = NAN
    """The same of the model retrained from another seed: what two retrainings are apart."""

    @property
    def met(self) -> bool | None:
        """None where there is no figure."""
        if self.value != self.value:
            return None
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)


def checks(place: Place, table: Table) -> Iterator[Check]:
    """Of our line in a table; none where it is not there."""
    if OUR not in table:
        return
    line, again = table[OUR], table.get(RetrainedAgain.name)
    others = {} if again is None else {check.what: check.value for check in _forgotten(place, again)}
    for check in _forgotten(place, line):
        yield replace(check, again=others.get(check.what, NAN))
    yield from _kept(place, line)
    yield from _ahead(place, table, line)


def _forgotten(place: Place, line: MethodSummary) -> Iterator[Check]:
    """What is measured from the retrained model."""
    level = place[2]
    if level in RECOVERED:
        yield Check(place, f"recovered gap ≥ {RECOVERED[level]:.2f}", line.recovered, least=RECOVERED[level])
    if level in RECOVERED_WORST:
        least = RECOVERED_WORST[level]
        yield Check(place, f"recovered gap, worst ≥ {least:.2f}", line.worst(GAP, "recovered_gap"), least)
    attack, membership = line.worst_attack, line.membership
    name = "" if attack is None else attack.measure.partition(" | ")[2]
    above = NAN if attack is None else attack.value
    yield Check(place, f"attacks above retrained ≤ {ATTACKED:.2f}", above, most=ATTACKED, note=name)
    yield Check(place, f"relearning above retrained ≤ {RELEARNED:.2f}", line.relearned, most=RELEARNED)
    apart = NAN if membership is None else membership.value
    yield Check(place, f"membership within {MEMBERSHIP:.1f}", apart, -MEMBERSHIP, MEMBERSHIP)


def _kept(place: Place, line: MethodSummary) -> Iterator[Check]:
    yield Check(place, f"siblings kept ≥ {KEPT:.2f}", line.value("siblings", "kept"), KEPT)
    yield Check(place, f"siblings kept, worst ≥ {KEPT_WORST:.2f}", line.worst("siblings", "kept"), KEPT_WORST)
    for group in ("unrelated", "general"):
        if line.mean(group, "kept") is not None:
            yield Check(place, f"{group} kept ≥ {ELSEWHERE:.2f}", line.value(group, "kept"), ELSEWHERE)


def _ahead(place: Place, table: Table, line: MethodSummary) -> Iterator[Check]:
    free, trained = best(table, TRAINING_FREE_NAMES), best(table, TRAINED_NAMES)
    for other, kind in ((free, "other training-free"), (trained, "trained")):
        if other is not None:
            ahead = other.harm - line.harm
            what = f"ahead of the best {kind} by |target − retrained| and losses"
            yield Check(place, what, ahead, 0.0, note=other.method)
    if trained is not None:
        share = line.of_model("seconds") / trained.of_model("seconds")
        yield Check(place, "in at most 1/3 of its time", share, most=TIME, note=trained.method)
