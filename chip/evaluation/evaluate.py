"""What a checkpoint has forgotten and kept, beside one that never knew it."""

from __future__ import annotations

import gc
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chip.checkpoint.layout import Checkpoint
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
from chip.model.adapters import open_checkpoint
from chip.model.batching.batch_size import BatchSize
from chip.model.environment import environment_of
from chip.model.loading import VLM
from chip.model.model_loader import model_loader
from chip.model.offload import DeviceMap, MaxMemory
from chip.progress import ProgressCallback, silent


def evaluate(
    checkpoint: Path | str,
    forget: Sequence[str],
    *,
    records: Path | str | RecordSource | None = None,
    reference: Path | str | None = None,
    original: Path | str | None = None,
    adapter: Path | str | None = None,
    base: Path | str | None = None,
    attacks: str | Collection[str | Attack] = (),
    general: Sequence[Path | str] = (AUTO,),
    judge: Judge | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    stream: bool | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Evaluation:
    """Ask a model about what it was to forget and what it was to keep, and attack it. Nothing is written.

    Args:
        checkpoint: folder in the Hugging Face format: an edited model, or one before an edit; or an adapter alone.
        forget: ids or paths of the nodes that are, or would be, forgotten.
        records: file or folder of records, or a `RecordSource` that says how to read it; by default those beside the
            checkpoint, else `CHIP_RECORDS`.
        reference: folder of a model retrained without these nodes, to compare with.
        original: folder of the model before the edit, for the attacks that need it, which hold it in memory beside
            the one that is asked, and to compare general ability with.
        adapter: folder of a LoRA adapter that is merged into the checkpoint.
        base: what an adapter alone belongs to; by default the base that its `adapter_config.json` names.
        attacks: names of attacks in `chip.evaluation.attacks.ATTACKS`, or attacks with settings of their own; or a
            text: `all`, or names with commas between them. `standard` stands for those that cost little. One that lacks
            what it needs is skipped, and `Evaluation.skipped` says why.
        general: what general ability is measured on: files and folders as `chip.edit` keeps by, but others; `auto`:
            prose that comes with chip, and that no edit protects; or `none`. Plain questions are asked with any.
        judge: a language model that is sent questions and answers, to say which of those generated are right.
        device: by default the best there is.
        device_map: for a model larger than a device: `auto`, or as in transformers. What does not fit lies on the host,
            then stays on the disk.
        max_memory: what a device map may take of each device and of the host; by default what is free.
        stream: layers are read from the disk one after the other; by default where a model does not fit into memory.
            Generated answers and some attacks read them anew for each batch and token.
        batch_size: records per forward pass; changes the time, and the result by rounding alone.
        seed: of bootstrap samples, drawn answers and relearning.

    Raises:
        InputError: the request cannot be met as it stands.
        RunError: a model does not fit into memory, or the judge does not answer.
    """
    # 1. Whom the request concerns, and what is asked.
    sources = [open_checkpoint(checkpoint, adapter, base)]
    sources += [] if reference is None else [Checkpoint.open(Path(reference))]
    records_source = find_source(sources[0].place, records, sources[0].folder)
    request = ForgetRequest.of(Hierarchy(read_records(records_source)), forget)
    config = EvalConfig(request, find_attacks(attacks), seed, judge=judge)
    given = GivenGeneral.of(general)
    attacked = _check_needed(original, config, given)

    # 2. What each model shows, one of them in memory at a time.
    outputs: list[tuple[EvalOutputs, dict[str, Any]]] = []
    with model_loader(DistributedContext(), device, device_map, max_memory, stream) as load:
        before = None if original is None else load(Checkpoint.open(Path(original)).folder)
        ability = GeneralAbility(given, request, before, BatchSize(batch_size))
        if not attacked:
            before = None
            gc.collect()  # a spread model refers to itself
        for source in sources:
            size = BatchSize(batch_size)
            outputs.append(_measure(load(source), config, size, progress, before, reference is not None, ability))

    # 3. What that says of them.
    return replace(compare(config, *(output for output, _ in outputs)), environment=outputs[0][1])


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
