"""Full fine-tuning of connector and text model: what the methods by training share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.forgetting.methods.base import BenchmarkMethod, trained_records
from benchmarks.forgetting.methods.losses import Answers, concatenated
from chip.checkpoint.layout import Checkpoint
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.demo.training import take_step
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.forward.trace import block_diagonal_attention
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import answer_logits
from chip.model.tensor_names import disk_names

WEIGHT_DECAY = 0.01
WARM = 0.1
"""Share of the steps in which the rate rises to its peak; then it falls to zero. Both linear."""


class TrainBatch:
    """A few records, batched once and used again: what the student says of their answers, and what the model did."""

    def __init__(self, student: VLM, reference: VLM, records: Sequence[Record]) -> None:
        self._student, self._reference, self._records = student, reference, records

    def answers(self) -> Answers:
        """Of the student, as it is now."""
        return answers_of(self._student, self._batches)

    @cached_property
    def reference(self) -> Answers:
        """Of the model that is to forget, untouched: computed when first read, and held."""
        with torch.no_grad():
            return answers_of(self._reference, self._batches)

    @cached_property
    def _batches(self) -> list[Batch]:
        batches = self._student.batches(self._records, size=BatchSize(len(self._records)))
        return list(batches.made())


@dataclass(frozen=True)
class Step:
    """What there is to learn from in one step. Nothing of it is computed unless the loss asks for it."""

    forget: TrainBatch
    retain: TrainBatch
    instead: TrainBatch
    """The questions of `forget`, with other answers."""


@dataclass(frozen=True)
class FineTuning(BenchmarkMethod):
    """AdamW on all weights of connector and text model, in fp32; the vision tower stays.

    A copy loaded from the source is trained, so that the model in memory is its own reference and never changes.
    Forgotten records are gone through again and again; of the retained as many are seen, drawn at random.
    """

    trains: ClassVar[bool] = True

    rate: float = 1e-4
    """Peak learning rate."""
    steps: int = 60
    batch: int = 32
    """Records of each kind in a step."""

    @abstractmethod
    def loss(self, step: Step) -> Tensor:
        """What is minimized."""

    def other_answer(self, record: Record, retained: Sequence[Record], draw: Callable[[int], int]) -> str:
        """What `Step.instead` teaches to answer; `draw(n)` gives a random number below n."""
        return record.answer

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        student = load_vlm(source.folder, str(vlm.device))
        student.model.float()
        names = list(_trained_parameters(student))
        disk = disk_names(source, names)
        parameters = [student.parameter(name).requires_grad_(True) for name in names]
        optimizer = torch.optim.AdamW(parameters, lr=self.rate, weight_decay=WEIGHT_DECAY)
        steps = self._steps(student, vlm, request, torch.Generator().manual_seed(seed))
        for number, step in enumerate(steps):
            take_step(optimizer, parameters, self.loss(step), self.rate * self._share_of_rate(number))
        return {disk[name]: student.parameter(name).detach().cpu() for name in names}

    def _share_of_rate(self, step: int) -> float:
        warm = max(1, round(WARM * self.steps))
        return min((step + 1) / warm, (self.steps - step) / max(1, self.steps - warm))

    def _steps(self, student: VLM, vlm: VLM, request: ForgetRequest, generator: torch.Generator) -> Iterator[Step]:
        records = request.hierarchy.records
        forget, retain = ([records[i] for i in group] for group in trained_records(request))

        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        def batches(records: Sequence[Record]) -> list[TrainBatch]:
            starts = range(0, len(records), self.batch)
            return [TrainBatch(student, vlm, records[start : start + self.batch]) for start in starts]

        forget = _shuffled(forget, generator)
        instead = [replace(record, answer=self.other_answer(record, retain, draw)) for record in forget]
        retain = _shuffled(retain, generator)[: self.steps * self.batch]
        kinds = [batches(group) for group in (forget, retain, instead)]
        for step in range(self.steps):
            yield Step(*(kind[step % len(kind)] for kind in kinds))


def _shuffled(records: Sequence[Record], generator: torch.Generator) -> list[Record]:
    return [records[i] for i in torch.randperm(len(records), generator=generator)]


def _trained_parameters(vlm: VLM) -> Iterator[str]:
    """Of the connectors, the text model and its head."""
    parts: list[Any] = [*vlm.connectors, vlm.language, vlm.model.lm_head]
    trained = {id(parameter) for part in parts for parameter in part.parameters()}
    return (name for name, parameter in vlm.model.named_parameters() if id(parameter) in trained)


def answers_of(vlm: VLM, batches: Sequence[Batch]) -> Answers:
    """What the model says of all answers in these batches; gradients flow where they are asked for."""
    return concatenated([_batch_answers(vlm, batch) for batch in batches])


def _batch_answers(vlm: VLM, batch: Batch) -> Answers:
    with block_diagonal_attention(vlm.layers, batch.attention_mask):
        hidden = vlm.core(**batch.inputs, use_cache=False).last_hidden_state  # (B, T, d)
    records, logits, wanted = answer_logits(vlm, batch, hidden)
    return Answers(logits, wanted, torch.unique(records, return_inverse=True)[1])
