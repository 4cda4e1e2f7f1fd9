"""What a model answers: exact match and answer probability of each record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from chip.data.record import Record
from chip.distributed import DistributedContext
from chip.errors import InputError
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.batches import Batches
from chip.model.forward.last_states import map_last_states
from chip.model.loading import VLM
from chip.progress import ProgressCallback, silent


@dataclass(frozen=True)
class Scores:
    """Per record, in the order of the records; NaN for records that were not scored."""

    exact_match: Tensor
    """(n,) fp64, 1 where greedy decoding gives the answer and then ends the turn."""
    answer_probability: Tensor
    """(n,) fp64, length-normalized: exp of the mean log-probability of the answer's tokens."""

    def check_numbers(self, records: Sequence[Record]) -> None:
        """Raise `InputError` where a record's answer has no probability: the model computes NaN."""
        for record, probability in zip(records, self.answer_probability.tolist(), strict=True):
            if math.isnan(probability):
                raise InputError(
                    f"{record.where}: the model's answer is NaN; check the checkpoint's weights, or compute in a wider "
                    "dtype"
                )


def score(vlm: VLM, batches: Batches, count: int, on_batch: Callable[[int], None]) -> Scores:
    """Score `batches`, which hold some of `count` records; `on_batch` is called with how many each batch has.

    One pass with the answer given does for both: greedy decoding reproduces an answer exactly when, given its
    beginning, each of its tokens is the most probable one.
    """
    exact = torch.full((count,), torch.nan, dtype=torch.float64)
    probability = exact.clone()

    def compute(batch: Batch, states: Tensor) -> None:
        owners, hits, log_probabilities = _score_tokens(vlm, batch, states)
        records, row, length = torch.unique(owners, return_inverse=True, return_counts=True)
        zeros = torch.zeros(len(records), dtype=torch.float64)
        exact[records] = (zeros.index_add(0, row, hits) == length).double()
        probability[records] = (zeros.index_add(0, row, log_probabilities) / length).exp()
        on_batch(len(records))

    map_last_states(vlm, batches, compute)
    return Scores(_merge(exact, batches.distributed), _merge(probability, batches.distributed))


def score_records(
    vlm: VLM,
    records: Sequence[Record],
    size: BatchSize | None = None,
    progress: ProgressCallback = silent,
    what: str = "asking",
    distributed: DistributedContext | None = None,
) -> Scores:
    """How well the model answers every record; `what` names the work in the progress shown."""
    batches = vlm.batches(records, size=size, distributed=distributed)
    with progress(what, len(batches)) as advance:
        return score(vlm, batches, len(records), advance)


def _merge(values: Tensor, distributed: DistributedContext) -> Tensor:
    """(n,): each record's value from the process that has scored it; NaN where none has."""
    scored, total = (~values.isnan()).double(), values.nan_to_num()
    distributed.all_reduce_(scored, total)
    return torch.where(scored > 0, total, torch.nan)


def answer_logits(vlm: VLM, batch: Batch, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of every token of all answers in `batch`.

    Args:
        states: (B, T, d), the text model's last hidden states.

    Returns:
        (n,) int64: the record whose answer the token is in; (n, vocabulary) fp32: the logits that predict it; (n,)
        int64: its vocabulary id. All on the device of the head.
    """
    rows, columns = batch.answer.nonzero(as_tuple=True)
    logits = head_logits(vlm, states[rows, columns - 1])
    owners = batch.answered[batch.segments[rows, columns]].to(logits.device)
    return owners, logits, batch.ids[rows, columns].to(logits.device)


def head_logits(vlm: VLM, states: Tensor) -> Tensor:
    """(n, vocabulary) fp32: what the head makes of the text model's last hidden states (n, d)."""
    return _within_bounds(vlm.model.get_output_embeddings()(states), vlm.logit_softcapping)


@dataclass(frozen=True)
class Head:
    """A copy of a model's head, for when the model itself is let go."""

    weight: Tensor
    """(vocabulary, d) on the host."""
    bias: Tensor | None
    """(vocabulary,)"""
    softcapping: float | None

    @classmethod
    def of(cls, vlm: VLM) -> Self:
        head = vlm.model.get_output_embeddings()
        prefix = next(name for name, module in vlm.model.named_modules() if module is head)
        values = {
            name: vlm.weights.parameter(f"{prefix}.{name}").detach().to("cpu", copy=True)
            for name, _ in head.named_parameters()
        }
        return cls(values["weight"], values.get("bias"), vlm.logit_softcapping)

    def to(self, device: torch.device) -> Self:
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)

    def logits(self, states: Tensor) -> Tensor:
        """As `head_logits` has them of the model; (n, d) of any dtype, wherever they are."""
        return _within_bounds(
            torch.nn.functional.linear(states.to(self.weight), self.weight, self.bias), self.softcapping
        )


def _within_bounds(logits: Tensor, cap: float | None) -> Tensor:
    """In fp32; Gemma 2, and with it PaliGemma 2, keeps logits within bounds behind the head."""
    logits = logits.float()
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _score_tokens(vlm: VLM, batch: Batch, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each token of an answer (n,): its record, 1.0 where it is the most probable one, its log-probability."""
    records, logits, ids = answer_logits(vlm, batch, states)
    log_probabilities = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    hits = logits.argmax(-1) == ids
    return records.cpu(), hits.cpu().double(), log_probabilities.cpu().double()
