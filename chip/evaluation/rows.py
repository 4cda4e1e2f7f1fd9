"""The figures of an evaluation, one a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from chip.data.record import TASKS, VALIDATION, Record
from chip.evaluation.groups import GROUPS

SPLITS = {"trained": False, "paraphrased": True}
"""Name in reports -> whether those records are held out."""


def in_split(record: Record, split: str) -> bool:
    """Whether figures of this split, one of `SPLITS`, count the record: none counts what settings are chosen by."""
    return record.split != VALIDATION and record.held_out == SPLITS[split]


WORST = "worst"
"""The split whose rows are the worse of the others'."""
HELD_OUT = "held out"
"""The split of figures of general ability, which are of no records."""
GAP = "siblings-target"
RETAINED = "retained"
"""Groups of some rows: a difference of two, and all that must stay, taken together."""
NO_ATTACK = "none"
ENOUGH = 24
"""Questions of one kind about a target, at least, for a figure that says something of that kind."""


@dataclass(frozen=True)
class ResultRow:
    """One figure."""

    group: str
    """One of `GROUPS`, `GAP` or `RETAINED`."""
    split: str
    """`trained`, `paraphrased` or `worst`; of general ability `held out`."""
    measure: str
    attack: str
    """`none`, or the attack and its step: `quantization: 4 bits`."""
    value: float
    low: float
    high: float
    """95 % bootstrap interval, clustered by patient, or by fact where there is only one; of general ability by text.
    NaN where there is none."""
    count: int
    """Records it was measured on; tokens or questions, where it is of general ability."""

    def to_json(self) -> dict[str, Any]:
        """NaN, which JSON has not, as null."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Evaluation:
    """What a model has forgotten and kept, under these tests."""

    rows: tuple[ResultRow, ...]
    reference: tuple[ResultRow, ...] | None
    """The same figures of the model it is compared with, which was retrained without the target."""
    attacks: tuple[str, ...]
    seed: int
    levels: tuple[str, ...] = ()
    """Of each node that was to be forgotten, one of `LEVELS`; empty where that is not known."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Attack, or a step of one, that was asked for and could not be run -> why; `general`: why not measured."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """What the model ran with: versions, device, dtype."""
    targets: tuple[str, ...] = ()
    """The nodes that were to be forgotten. In nothing that is written, unless somebody asks for their names."""

    def find(self, group: str, split: str, measure: str, attack: str = NO_ATTACK) -> ResultRow | None:
        """The model's one figure of this name; None where it was not measured."""
        key = (group, split, measure, attack)
        return next((row for row in self.rows if (row.group, row.split, row.measure, row.attack) == key), None)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that figures are of: those of `GROUPS` in their order, then what others there are."""
        names = dict.fromkeys(row.group for row in self.rows if row.group not in (GAP, RETAINED))
        return (*(group for group in GROUPS if group in names), *(group for group in names if group not in GROUPS))

    @property
    def few_questions(self) -> dict[str, int]:
        """Task -> how many questions of that kind were asked about the target, where they are fewer than `ENOUGH`."""
        counts = dict.fromkeys(TASKS, 0)
        for row in self.rows:
            task = row.measure.removesuffix("_accuracy")
            if row.group == "target" and row.split in SPLITS and task in counts and task != row.measure:
                counts[task] += row.count
        return {task: count for task, count in counts.items() if count < ENOUGH}

    def to_json(self) -> dict[str, Any]:
        """Figures only: nothing of the records."""
        return {
            "attacks": list(self.attacks),
            "seed": self.seed,
            "skipped": dict(self.skipped),
            "few_questions": self.few_questions,
            "rows": [row.to_json() for row in self.rows],
            "reference": None if self.reference is None else [row.to_json() for row in self.reference],
        }
