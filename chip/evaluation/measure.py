"""Asks one model all that an evaluation needs to know of it: a value for each record, measure and attack."""

from __future__ import annotations

from chip.evaluation.config import EvalConfig
from chip.evaluation.context import EvalContext
from chip.evaluation.metrics.classification import measure_classification
from chip.evaluation.metrics.generated import measure_generated
from chip.evaluation.metrics.leak import measure_leak
from chip.evaluation.metrics.truth_ratio import measure_truth_ratio
from chip.evaluation.outputs import EvalOutputs
from chip.evaluation.rows import NO_ATTACK
from chip.model.batching.batch_size import BatchSize
from chip.model.loading import VLM
from chip.progress import ProgressCallback, silent


def measure(
    vlm: VLM, config: EvalConfig, batch_size: BatchSize | None = None, progress: ProgressCallback = silent
) -> EvalOutputs:
    """Ask a model everything; it is left as it was.

    Raises:
        InputError: an image cannot be read, or an attack cannot be run on this model.
        RunError: a single record, or relearning, does not fit into memory; the judge does not answer.
    """
    context = _context(vlm, config, batch_size or BatchSize(), progress)
    # 1. How probable are the answers, and which are the most probable ones? What follows builds on it.
    context.score(NO_ATTACK, dict(enumerate(config.records)), "asking")
    # 2. Which option does it choose, and what do wrong answers cost it?
    measure_classification(context)
    measure_truth_ratio(context, config)
    # 3. What does it say, and what does it let slip?
    measure_generated(context, config)
    measure_leak(context, config)
    # 4. What do attacks bring back?
    for attack in config.attacks_to_run:
        attack.run(context)
    return context.outputs


def _context(vlm: VLM, config: EvalConfig, batch_size: BatchSize, progress: ProgressCallback) -> EvalContext:
    return EvalContext(
        vlm=vlm,
        records=config.records,
        attacked=config.attacked,
        members=config.members,
        retained=config.retained,
        unseen=config.unseen,
        seed=config.seed,
        batch_size=batch_size,
        progress=progress,
    )
