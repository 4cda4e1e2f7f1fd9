"""Whether the pass in stages shows what the model itself computes: looked at in one record before it is relied on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from chip.data.record import Record
from chip.distributed import DistributedContext
from chip.errors import InputError
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.batches import Batches
from chip.model.batching.retry import run_batches
from chip.model.experts import OutputMap, check_block
from chip.model.families import find_causal
from chip.model.forward.collector import Collector
from chip.model.forward.last_states import map_last_states
from chip.model.forward.observer import StageObserver
from chip.model.forward.trace import Call, record_calls, trace
from chip.model.loading import VLM
from chip.model.running import running
from chip.model.scoring import answer_logits
from chip.model.stages import Stage
from chip.model.target_modules import TargetModule
from chip.model.tokens import Tokens

LOGITS = "logits"
MARGIN = 4.0

Shown = dict[str, list[Tensor]]
"""Module's name, or `LOGITS` -> (n, ...) fp32 on the host, in the order in which it was reached."""


def tolerance(dtype: torch.dtype) -> float:
    """How far the two may be apart, as a share of their size: `MARGIN` times the root of the dtype's precision.

    That is 0.0014 in fp32 and 0.35 in bf16. Rounding moved random models by at most 2e-6 and 0.04, and layers without
    their embeddings by 0.8.
    """
    return float(MARGIN * torch.finfo(dtype).eps ** 0.5)


@torch.no_grad()
def check_pass(
    vlm: VLM, records: Sequence[Record], indices: Sequence[int], stages: Sequence[Stage], needs_outputs: bool
) -> None:
    """Run the first of the records, if there is one the first with an image, as the model does and as `Collector` does.

    In the collector another of the records shares its row where they can share. It takes three passes of one or two
    records: the model's own, one in stages, and one as answers are scored.

    Args:
        indices: which of the records may be taken.
        stages: in the order of data. What goes into their modules is compared, and the logits of the answer.
        needs_outputs: as `Collector.collect` has it; without, the first module of each stage stands for all.

    Raises:
        InputError: the two differ by more than rounding can account for.
        RunError: a record does not fit into memory.
    """
    if not indices:
        return
    index = next((i for i in indices if records[i].image is not None), indices[0])
    images = records[index].images
    other = [i for i in indices if i != index and images and records[i].images == images][:1]
    stages = stages if needs_outputs else [stage.first_only for stage in stages]
    plain = _plain(vlm, records, index, stages)
    staged = _staged(vlm, records, [index, *other], stages, needs_outputs)
    limit = tolerance(vlm.model.dtype)
    for name, expected in plain.items():
        off = difference(expected, staged[name])
        if off > limit:
            where = records[index].where
            raise InputError(
                f"{name}: the pass in stages is off by {off:.2g} of the model's own, at the record {where} (rounding "
                f"explains {limit:.2g}); chip does not run this family as it should, take one that it is tested with"
            )


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The distance of two sequences of rows (n, d), as a share of their size; infinite where there are not as many.

    Each row counts alike, however long it is: an attention sink would else hide all others.
    """
    if not expected and not found:
        return 0.0
    if not expected or not found or torch.cat(list(expected)).shape != torch.cat(list(found)).shape:
        return float("inf")
    x, y = torch.cat(list(expected)), torch.cat(list(found))
    size = torch.linalg.vector_norm(x, dim=1)
    off = torch.linalg.vector_norm(y - x, dim=1) / torch.maximum(size, size.median()).clamp(min=1e-30)
    return float(off.square().mean().sqrt())


def _plain(vlm: VLM, records: Sequence[Record], index: int, stages: Sequence[Stage]) -> Shown:
    """The record alone, in one ordinary forward of the model."""
    whole = Stage(tuple(module for stage in stages for module in stage.target_modules))
    # What is NaN is named by the pass in stages: there it is seen where it begins.
    observer = StageObserver(vlm, records, whole, lambda _: _Inputs(index), needs_outputs=True, check_finite=False)
    answer: list[Tensor] = []
    blocks = {vlm.model.get_submodule(module.name): module for module in whole.target_modules if module.output_maps}

    def keep(batch: Batch, given: Any) -> None:
        columns = batch.answer[0].nonzero()[:, 0].to(given.logits.device)
        answer.append(_rows(given.logits[0, columns - 1]))

    def compute(batch: Batch) -> None:
        with running(vlm.model), ExitStack() as hooks:
            for hook in observer.hooks(batch):
                hooks.enter_context(hook)
            calls = hooks.enter_context(record_calls(list(blocks)))
            hooks.enter_context(trace(find_causal(vlm.model), output=lambda _, given: keep(batch, given), stop=True))
            vlm.model(**batch.inputs, use_cache=False)
        for call in calls:
            _check_block(vlm, blocks[call.module], call)

    run_batches(Batches(vlm, records, [index], BatchSize(1), together=False), compute)
    return {**{module.name: seen.rows for module, seen in observer.statistics.items()}, LOGITS: answer}


def _staged(
    vlm: VLM, records: Sequence[Record], indices: Sequence[int], stages: Sequence[Stage], needs_outputs: bool
) -> Shown:
    """The first of the records, in one batch with the others, as statistics and scores see it."""
    shown: Shown = {}
    batches = Batches(vlm, records, indices, BatchSize(len(indices)))
    collector = Collector(vlm, batches, records)
    for stage in stages:
        seen = collector.collect(stage, lambda _: _Inputs(indices[0]), lambda _: None, needs_outputs=needs_outputs)
        shown |= {module.name: each.rows for module, each in seen.items()}
    answer: list[Tensor] = []

    def compute(batch: Batch, states: Tensor) -> None:
        owners, logits, _ = answer_logits(vlm, batch, states)
        answer.append(_rows(logits[owners == indices[0]]))

    map_last_states(vlm, batches, compute)
    return shown | {LOGITS: answer}


def _check_block(vlm: VLM, module: TargetModule, call: Call) -> None:
    """Look at a block of experts; not where accelerate loads its weights only while it runs."""
    own = tuple(OutputMap(each.name.removeprefix(f"{module.name}."), each.axis) for each in module.output_maps)
    if vlm.weights.streamed or not any(call.module.get_parameter(each.name).is_meta for each in own):
        names = [name for name, _ in call.module.named_parameters()]
        check_block(module.name, own, call, {name: vlm.parameter(f"{module.name}.{name}") for name in names})


class _Inputs:
    """Statistics that keep what goes into a module for one record."""

    def __init__(self, record: int) -> None:
        self._record = record
        self.rows: list[Tensor] = []

    def update(self, tokens: Tokens) -> None:
        own = tokens.owners.segments[tokens.owners.records == self._record]
        self.rows.append(_rows(tokens.inputs[torch.isin(tokens.segments, own)]))

    def merge(self, distributed: DistributedContext) -> None:
        """Each process looks for itself."""


def _rows(x: Tensor) -> Tensor:
    return x.detach().flatten(0, -2).float().cpu()
