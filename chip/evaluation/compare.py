"""What was measured of a model, and of the one it is compared with, as one table."""

from __future__ import annotations

from chip.evaluation.config import EvalConfig
from chip.evaluation.outputs import EvalOutputs
from chip.evaluation.relations import relations
from chip.evaluation.rows import Evaluation
from chip.evaluation.table import Table


def compare(config: EvalConfig, outputs: EvalOutputs, reference: EvalOutputs | None = None) -> Evaluation:
    """The figures of one model, and of the one it is compared with; both were asked the same."""
    table = Table(config, outputs)
    attacks = tuple(attack.name for attack in config.attacks_to_run)
    levels = tuple(target.level for target in config.request.partition.targets)
    if reference is None:
        return Evaluation(tuple(table.rows()), None, attacks, config.seed, levels, outputs.skipped)
    reference_table = Table(config, reference)
    rows = (*table.rows(), *relations(table, reference_table))
    skipped = {**reference.skipped, **outputs.skipped}
    return Evaluation(rows, tuple(reference_table.rows()), attacks, config.seed, levels, skipped)
