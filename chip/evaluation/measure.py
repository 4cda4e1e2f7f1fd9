"""Asks one model all that an evaluation needs to know of it: a value for each record, measure and attack."""

from __future__ import annotations

from chip.evaluation.attacks.base import LACKING, ORIGINAL, REFERENCE
from chip.evaluation.config import EvalConfig
from chip.evaluation.context import EvalContext
from chip.evaluation.general import GeneralAbility
from chip.evaluation.metrics.classification import measure_tasks
from chip.evaluation.metrics.generated import measure_generated
from chip.evaluation.metrics.leak import measure_leak
from chip.evaluation.metrics.truth_ratio import measure_truth_ratio
from chip.evaluation.outputs import EvalOutputs
from chip.evaluation.rows import NO_ATTACK
from chip.model.batching.batch_size import BatchSize
from chip.model.loading import VLM
from chip.progress import ProgressCallback, silent


def measure(
    vlm: VLM,
    config: EvalConfig,
    batch_size: BatchSize | None = None,
    progress: ProgressCallback = silent,
    original: VLM | None = None,
    compared: bool = True,
    general: GeneralAbility | None = None,
) -> EvalOutputs:
    """Ask a model everything; it is left as it was.

    Args:
        original: the model before the edit, for the attacks that need it.
        compared: whether there is a model retrained without the target to compare with, for those that need it.
        general: what measures the model's general ability, if that is wanted.

    Raises:
        InputError: an image cannot be read, or an attack cannot be run on this model.
        RunError: a single record, or relearning, does not fit into memory; the judge does not answer.
    """
    context = context_of(vlm, config, batch_size or BatchSize(), progress, original)
    # 1. How probable are the answers, and which are the most probable ones? What follows builds on it.
    context.score(NO_ATTACK, dict(enumerate(config.records)), "asking")
    # 2. Which option does it choose, and what do wrong answers cost it?
    measure_tasks(context)
    measure_truth_ratio(context, config)
    # 3. What does it say, and what does it let slip?
    measure_generated(context, config)
    measure_leak(context, config)
    # 4. What does it make of what no record holds?
    if general is not None:
        general.measure(context)
    # 5. What do attacks bring back?
    lacking = {name for name, there in ((ORIGINAL, original is not None), (REFERENCE, compared)) if not there}
    for attack in config.attacks_to_run:
        if missing := sorted(attack.needs & lacking):
            context.skip(attack.name, "; ".join(LACKING[name] for name in missing))
        else:
            attack.run(context)
    return context.outputs


def context_of(
    vlm: VLM, config: EvalConfig, batch_size: BatchSize, progress: ProgressCallback, original: VLM | None
) -> EvalContext:
    """What attacks on this model are given."""
    return EvalContext(
        vlm=vlm,
        records=config.records,
        attacked=config.attacked,
        members=config.members,
        retained=config.retained,
        unseen=config.unseen,
        partition=config.request.partition,
        siblings=[index for index in config.groups["siblings"] if not config.records[index].held_out],
        groups=config.groups,
        original=original,
        seed=config.seed,
        batch_size=batch_size,
        progress=progress,
    )
