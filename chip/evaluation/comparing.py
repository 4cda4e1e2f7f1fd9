"""What was measured of a model, and of the one it is compared with, as one table."""

from __future__ import annotations

from chip.evaluation.asking import Measured, Plan
from chip.evaluation.rows import Evaluation
from chip.evaluation.table import Table, relations


def compare(plan: Plan, measured: Measured, reference: Measured | None = None) -> Evaluation:
    """The figures of one model, and of the one it is compared with, asked by the same plan."""
    table = Table(plan, measured)
    levels = tuple(target.level for target in plan.case.split.targets)
    if reference is None:
        return Evaluation(tuple(table.rows()), None, tuple(plan.attacks), plan.seed, levels)
    other = Table(plan, reference)
    rows = (*table.rows(), *relations(table, other))
    return Evaluation(rows, tuple(other.rows()), tuple(plan.attacks), plan.seed, levels)
