"""What a checkpoint has forgotten and kept, beside one that never knew it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.record import find_records, read_records
from chip.data.request import ForgetRequest
from chip.evaluation.compare import compare
from chip.evaluation.judge import Judge
from chip.evaluation.measure import EvalConfig, EvalOutputs, measure
from chip.evaluation.rows import Evaluation
from chip.model.batching.batch_size import BatchSize
from chip.model.loading import load_vlm
from chip.progress import ProgressCallback, silent


def evaluate(
    checkpoint: Path | str,
    forget: Sequence[str],
    *,
    records: Path | str | None = None,
    reference: Path | str | None = None,
    attacks: Sequence[str] = (),
    device: str | None = None,
    judge: Judge | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Evaluation:
    """Ask a model about what it was to forget and what it was to keep, and attack it. Nothing is written.

    Args:
        checkpoint: folder in the Hugging Face format: an edited model, or one before an edit.
        forget: ids or paths of the nodes that are, or would be, forgotten.
        records: .jsonl or .parquet; by default those beside the checkpoint, else `CHIP_RECORDS`.
        reference: folder of a model retrained without these nodes, to compare with.
        attacks: some of `chip.evaluation.measure.ATTACKS`.
        judge: a language model that is sent questions and answers, to say which of those generated are right.
        batch_size: records per forward pass; changes the time, never the result.
        seed: of bootstrap samples, drawn answers and relearning.

    Raises:
        InputError: the request cannot be met as it stands.
        RunError: a model does not fit into memory, or the judge does not answer.
    """
    folders = [Checkpoint.open(Path(each)).folder for each in (checkpoint, reference) if each is not None]
    hierarchy = Hierarchy(read_records(find_records(folders[0], None if records is None else Path(records))))
    plan = EvalConfig(ForgetRequest.of(hierarchy, forget), tuple(attacks), seed, judge=judge)

    def ask(folder: Path) -> EvalOutputs:
        return measure(load_vlm(folder, device), plan, BatchSize(batch_size), progress)

    measured, *others = (ask(folder) for folder in folders)  # one model in memory at a time
    return compare(plan, measured, *others)
