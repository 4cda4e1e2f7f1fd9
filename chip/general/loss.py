"""How far an edited model is from the unedited one on text that no record holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from chip.data.record import Record
from chip.distributed import DistributedContext
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.batches import Batches
from chip.model.forward.last_states import map_last_states
from chip.model.generation import OpenAnswer, answer_openly
from chip.model.loading import VLM
from chip.model.scoring import Head, head_logits

TOGETHER = 256
"""Tokens whose logits are in memory at once."""
LONGEST = 64
"""Tokens within which an answer may end."""


@dataclass(frozen=True)
class GeneralLoss:
    """What a model has lost of its general ability, on held-out general data."""

    kl: float
    """KL(unedited ‖ edited), nats a token."""
    nats_before: float
    """−log p of the text, nats a token, in the unedited model."""
    nats_after: float
    ended_before: float
    """Part of its greedy answers to plain questions that end by themselves."""
    ended_after: float
    tokens: int
    """What the first three are means of."""
    questions: int
    """What the last two are shares of."""

    @property
    def ended_drop(self) -> float:
        return self.ended_before - self.ended_after

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class GeneralReference:
    """What the unedited model makes of held-out general data: its last hidden states, and its answers."""

    def __init__(
        self,
        vlm: VLM,
        held_out: Sequence[Record],
        questions: Sequence[Record],
        size: BatchSize | None = None,
        distributed: DistributedContext | None = None,
        head: Head | None = None,
    ) -> None:
        """
        Args:
            held_out: texts, or questions with answers; not empty, and none that the edit protects.
            questions: plain questions; what is looked at is only whether an answer ends.
            head: the model's own, where those that are compared with it may have another; an edit never has.
        """
        self._held_out, self._questions = list(held_out), list(questions)
        self._size, self._distributed = size or BatchSize(), distributed or DistributedContext()
        self._head = head
        self._states: dict[int, Tensor] = {}
        self._losses: dict[int, Tensor] = {}
        map_last_states(vlm, self._batches(vlm), partial(self._remember, vlm))
        self.answers = self.answer(vlm)
        """The unedited model's to the questions."""

    def of(self, vlm: VLM) -> GeneralReference:
        """The same of another model."""
        return GeneralReference(vlm, self._held_out, self._questions, self._size, self._distributed)

    def compare(self, vlm: VLM) -> GeneralLoss:
        """What `vlm`, an edit of the model, has lost."""
        *totals, tokens = self.compare_texts(vlm).sum(0).tolist()
        kl, after, before = (total / tokens for total in totals)
        ended_before, ended_after = (_share_that_ends(answers) for answers in (self.answers, self.answer(vlm)))
        return GeneralLoss(kl, before, after, ended_before, ended_after, int(tokens), len(self._questions))

    def divergence(self, vlm: VLM) -> float:
        """KL(unedited ‖ vlm), nats a token, alone."""
        total, _, _, tokens = self.compare_texts(vlm).sum(0).tolist()
        return float(total / tokens)

    def compare_texts(self, vlm: VLM) -> Tensor:
        """(texts, 4) fp64: KL(unedited ‖ vlm) on each text, −log p of it in `vlm` and in the unedited model, in nats
        summed over its tokens, and how many tokens these are."""
        totals = torch.zeros(len(self._held_out), 4, dtype=torch.float64)
        head = None if self._head is None else self._head.to(vlm.device)

        def compute(batch: Batch, last: Tensor) -> None:
            for record, states, ids in _rows(batch, last):
                totals[record] = self._compared(vlm, head, record, states, ids)

        map_last_states(vlm, self._batches(vlm), compute)
        self._distributed.all_reduce_(totals)  # each text is in one process's batches alone
        return totals

    def answer(self, vlm: VLM) -> list[OpenAnswer]:
        """What a model answers to the questions."""
        return answer_openly(vlm, self._questions, LONGEST) if self._questions else []

    def _batches(self, vlm: VLM) -> Batches:
        return _batches(vlm, self._held_out, self._size, self._distributed)

    def _remember(self, vlm: VLM, batch: Batch, last: Tensor) -> None:
        for record, states, ids in _rows(batch, last):
            self._states[record] = states.cpu()
            self._losses[record] = _nats(vlm, states, ids)

    def _compared(self, vlm: VLM, head: Head | None, record: int, states: Tensor, ids: Tensor) -> Tensor:
        """(4,) fp64 of one text: its row of `compare_texts`."""
        total = torch.zeros(4, dtype=torch.float64)
        for part in _parts(ids):
            after = head_logits(vlm, states[part]).log_softmax(-1)
            own = self._states[record][part]
            logits = head_logits(vlm, own.to(states)) if head is None else head.logits(own).to(after.device)
            before = logits.log_softmax(-1)
            divergence = (before.exp() * (before - after)).sum(-1)
            values = (divergence, -after.gather(1, ids[part, None])[:, 0], self._losses[record][part])
            sums = [float(value.cpu().double().sum()) for value in values]
            total += torch.tensor([*sums, len(divergence)], dtype=torch.float64)
        return total


def losses_of(vlm: VLM, texts: Sequence[Record], size: BatchSize | None = None) -> Tensor:
    """(texts, 2) fp64: −log p of each text, in nats summed over its tokens, and how many tokens these are."""
    totals = torch.zeros(len(texts), 2, dtype=torch.float64)

    def compute(batch: Batch, last: Tensor) -> None:
        for record, states, ids in _rows(batch, last):
            totals[record, 0], totals[record, 1] = _nats(vlm, states, ids).double().sum(), len(ids)

    map_last_states(vlm, _batches(vlm, texts, size or BatchSize(), DistributedContext()), compute)
    return totals


def _batches(vlm: VLM, texts: Sequence[Record], size: BatchSize, distributed: DistributedContext) -> Batches:
    """Each text alone in its row, so that a row's tokens are always the same."""
    return Batches(vlm, texts, range(len(texts)), size, together=False, distributed=distributed)


def _share_that_ends(answers: Sequence[OpenAnswer]) -> float:
    return fmean(answer.ended for answer in answers) if answers else 0.0


def _rows(batch: Batch, states: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Of each row its record, the states (n, d) from which a text token is predicted, and that token (n,)."""
    ids = batch.ids
    predicted = (batch.real & ~batch.vision)[:, 1:]
    return [
        (row.records[0], states[number, :-1][predicted[number].to(states.device)], ids[number, 1:][predicted[number]])
        for number, row in enumerate(batch.rows)
    ]


def _parts(ids: Tensor) -> list[slice]:
    """Of a text's tokens (n,): those whose logits are in memory at once."""
    return [slice(start, start + TOGETHER) for start in range(0, len(ids), TOGETHER)]


def _nats(vlm: VLM, states: Tensor, ids: Tensor) -> Tensor:
    """(n,) fp32 on the host: −log p of the tokens `ids` (n,), which are predicted from `states` (n, d)."""
    losses = [torch.zeros(0)]
    for part in _parts(ids):
        logits = head_logits(vlm, states[part])
        loss = torch.nn.functional.cross_entropy(logits, ids[part].to(logits.device), reduction="none")
        losses.append(loss.float().cpu())
    return torch.cat(losses)
