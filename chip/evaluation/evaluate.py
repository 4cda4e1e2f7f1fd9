"""The main flow of an evaluation: ask a model and the one it is compared with, and make a table of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chip.evaluation.asking import Measured, Plan, measure
from chip.evaluation.judge import Judge
from chip.evaluation.rows import Evaluation
from chip.evaluation.table import Table, relations
from chip.operators.base import Case
from chip.progress import Progress, silent
from chip.records import Record
from chip.vlm.batch_size import BatchSize
from chip.vlm.loading import VLM


def evaluate(
    vlm: VLM,
    case: Case,
    *,
    reference: VLM | None = None,
    attacks: Sequence[str] = (),
    seed: int = 0,
    groups: Mapping[str, Sequence[int]] | None = None,
    unseen: Sequence[Record] = (),
    judge: Judge | None = None,
    size: BatchSize | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measure what a model knows of a case, and what attacks bring back; both models are left as they were.

    Two models at a time are in memory. `measure` and `compare` do the same one model after the other.

    Args:
        reference: a model retrained without the target; where there is none, nothing is compared.
        attacks: some of `ATTACKS`, in the order in which to run them.
        groups: the records of each of `GROUPS`, where one knows better than `chip.evaluation.groups`.
        unseen: records like the target's that were never trained on, for membership inference; without them the
            target's own questions with wrong answers.
        judge: a language model that is sent questions and answers, to judge what was generated.

    Raises:
        InputError: there is no such attack, or it cannot be run on this model; an image cannot be read.
        RunError: it does not fit into memory, or the judge does not answer.
    """
    plan = Plan(case, tuple(attacks), seed, groups, unseen, judge=judge)
    measured = measure(vlm, plan, size, progress)
    return compare(plan, measured, None if reference is None else measure(reference, plan, size, progress))


def compare(plan: Plan, measured: Measured, reference: Measured | None = None) -> Evaluation:
    """The figures of one model, and of the one it is compared with, asked by the same plan."""
    table = Table(plan, measured)
    levels = tuple(target.level for target in plan.case.split.targets)
    if reference is None:
        return Evaluation(tuple(table.rows()), None, tuple(plan.attacks), plan.seed, levels)
    other = Table(plan, reference)
    rows = (*table.rows(), *relations(table, other))
    return Evaluation(rows, tuple(other.rows()), tuple(plan.attacks), plan.seed, levels)
