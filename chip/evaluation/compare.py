"""What was measured of a model, and of the one it is compared with, as one table."""

from __future__ import annotations

from chip.evaluation.measure import EvalConfig, EvalOutputs
from chip.evaluation.rows import Evaluation
from chip.evaluation.table import Table, relations


def compare(plan: EvalConfig, measured: EvalOutputs, reference: EvalOutputs | None = None) -> Evaluation:
    """The figures of one model, and of the one it is compared with, asked by the same plan."""
    table = Table(plan, measured)
    levels = tuple(target.level for target in plan.request.partition.targets)
    if reference is None:
        return Evaluation(tuple(table.rows()), None, tuple(plan.attacks), plan.seed, levels)
    other = Table(plan, reference)
    rows = (*table.rows(), *relations(table, other))
    return Evaluation(rows, tuple(other.rows()), tuple(plan.attacks), plan.seed, levels)
