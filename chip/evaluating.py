"""What a checkpoint has forgotten and kept, beside one that never knew it: resolve the request, measure, compare."""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from chip.checkpoint.hub import checkpoint_folder
from chip.checkpoint.plain import open_plain
from chip.data.hierarchy import Hierarchy
from chip.data.readers import RecordSource, find_source, read_records
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.errors import InputError
from chip.evaluation.attacks import ATTACKS, Attack, find_attacks
from chip.evaluation.attacks.base import ORIGINAL
from chip.evaluation.compare import compare
from chip.evaluation.config import EvalConfig
from chip.evaluation.general import GeneralAbility, GivenGeneral
from chip.evaluation.judge import Judge
from chip.evaluation.measure import measure
from chip.evaluation.outputs import EvalOutputs
from chip.evaluation.rows import Evaluation
from chip.general.collect import AUTO
from chip.ledger import Ledger
from chip.model.adapters import open_with
from chip.model.batching.batch_size import BatchSize
from chip.model.environment import environment_of
from chip.model.loading import VLM
from chip.model.loading_options import RunOptions, check_keywords
from chip.model.model_loader import model_loader
from chip.progress import ProgressCallback, silent
from chip.recording.runs import EvalRecord
from chip.recording.targets import edited_targets


def evaluate(
    checkpoint: Path | str,
    forget: Sequence[str] | None,
    *,
    records: Path | str | RecordSource | None = None,
    reference: Path | str | None = None,
    original: Path | str | None = None,
    attacks: str | Collection[str | Attack] = (),
    general: Sequence[Path | str] = (AUTO,),
    judge: Judge | None = None,
    seed: int = 0,
    ledger: Ledger | None = None,
    progress: ProgressCallback = silent,
    **options: Unpack[RunOptions],
) -> Evaluation:
    """Ask a model about what it was to forget and what it was to keep, and attack it. Nothing is written.

    Args:
        checkpoint: folder in the Hugging Face format: an edited model, or one before an edit; or an adapter alone. It,
            and each model below, may be a repository on the Hub, as `edit` takes it.
        forget: ids or paths of the nodes that are, or would be, forgotten; None: those whose requests were edited into
            it by the ledger, and wait for its release.
        records: file or folder of records, or a `RecordSource` that says how to read it; by default those beside the
            checkpoint, else `CHIP_RECORDS`.
        reference: folder of a model retrained without these nodes, to compare with.
        original: folder of the model before the edit, for the attacks that need it, which hold it in memory beside
            the one that is asked, and to compare general ability with.
        attacks: names in `chip.evaluation.attacks.ATTACKS`, or attacks with settings of their own; or a text: `all`, or
            names with commas between them. `standard` stands for those that cost little. One that lacks what it needs
            is skipped, and `Evaluation.skipped` says why.
        general: what general ability is measured on: files and folders as `chip.edit` keeps by, but others; `auto`:
            prose that comes with chip, and that no edit protects; or `none`. Plain questions are asked with any.
        judge: a language model that is sent questions and answers, to say which of those generated are right.
        seed: of bootstrap samples, drawn answers and relearning.
        ledger: gets an entry of the figures, or that it failed; an edit in it must have written the checkpoint.
        options: see `RunOptions`: where the models run.

    Raises:
        InputError: the request cannot be met as it stands.
        RunError: a model does not fit into memory, or the judge does not answer.
    """
    check_keywords("evaluate", RunOptions, options)
    # 1. Resolve the request.
    source = open_with(checkpoint, options, progress=progress)
    retrained = None if reference is None else open_plain(checkpoint_folder(reference, argument="reference"), progress)
    hierarchy = Hierarchy(read_records(find_source(source.place, records, source.given)))
    forget = edited_targets(ledger, source, hierarchy, progress) if forget is None else forget
    config = EvalConfig(ForgetRequest.of(hierarchy, forget), find_attacks(attacks), seed, judge=judge)
    given = GivenGeneral.of(general)
    attacked = _check_needed(original, config, given)
    with (
        EvalRecord(ledger, config.request, source, retrained, progress) as record,
        model_loader(DistributedContext(), options) as load,
    ):
        before = None if original is None else load(checkpoint_folder(original, argument="original"))
        ability = GeneralAbility(given, config.request, before, BatchSize(options.get("batch_size")))
        if not attacked:
            before = None
            gc.collect()  # a spread model refers to itself
        outputs = []
        for model in (source, *([] if retrained is None else [retrained])):  # 2. Measure, one in memory at a time.
            size = BatchSize(options.get("batch_size"))
            outputs.append(_measure(load(model), config, size, progress, before, retrained is not None, ability))
        evaluation = compare(config, *(output for output, _ in outputs))  # 3. Compare.
        evaluation = replace(evaluation, environment=outputs[0][1], targets=tuple(forget))
        record.evaluated(evaluation)
        return evaluation


def _check_needed(original: Path | str | None, config: EvalConfig, general: GivenGeneral) -> bool:
    """Whether an attack needs the model before the edit; refused where that is given, and nothing looks at it."""
    attacked = any(ORIGINAL in attack.needs for attack in config.attacks_to_run)
    if original is not None and not attacked and not general:
        names = ", ".join(attack.name for attack in ATTACKS.values() if ORIGINAL in attack.needs)
        message = f"no attack that is run needs it; run one of {names}, or measure general ability"
        raise InputError(message, argument="original", value=original)
    return attacked


def _measure(vlm: VLM, config: EvalConfig, *more: Any) -> tuple[EvalOutputs, dict[str, Any]]:
    """What a model shows, and what it ran with; it can be let go then."""
    return measure(vlm, config, *more), environment_of(vlm)
