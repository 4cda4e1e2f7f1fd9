"""How far an edited model is from the unedited one on text that no record holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
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
from chip.model.generation import answers_that_end
from chip.model.loading import VLM
from chip.model.scoring import head_logits

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
    """What the unedited model makes of held-out general data: its last hidden states, as the head is never edited."""

    def __init__(
        self,
        vlm: VLM,
        held_out: Sequence[Record],
        questions: Sequence[Record],
        size: BatchSize | None = None,
        distributed: DistributedContext | None = None,
    ) -> None:
        """
        Args:
            held_out: texts, or questions with answers; not empty, and none that the edit protects.
            questions: plain questions; what is looked at is only whether an answer ends.
        """
        self._held_out, self._questions = list(held_out), list(questions)
        self._size, self._distributed = size or BatchSize(), distributed or DistributedContext()
        self._states: dict[int, Tensor] = {}
        self._losses: dict[int, Tensor] = {}
        map_last_states(vlm, self._batches(vlm), partial(self._remember, vlm))
        self._ended = self._share_that_ends(vlm)

    def of(self, vlm: VLM) -> GeneralReference:
        """The same of another model."""
        return GeneralReference(vlm, self._held_out, self._questions, self._size, self._distributed)

    @property
    def nats(self) -> float:
        """−log p of the held-out data, nats a token, in the unedited model."""
        rows = [torch.tensor([float(loss.sum()), len(loss)]) for loss in self._losses.values()]
        total, tokens = self._summed(rows, 2).tolist()
        return total / tokens if tokens else inf

    def compare(self, vlm: VLM) -> GeneralLoss:
        """What `vlm`, an edit of the model, has lost."""
        kl, after, before, tokens = self._divergence(vlm)
        ended = self._share_that_ends(vlm)
        return GeneralLoss(kl, before, after, self._ended, ended, tokens, len(self._questions))

    def divergence(self, vlm: VLM) -> float:
        """KL(unedited ‖ vlm), nats a token, alone."""
        return self._divergence(vlm)[0]

    def _divergence(self, vlm: VLM) -> tuple[float, float, float, int]:
        """KL, −log p after and before, nats a token; of how many tokens."""
        sums = map_last_states(vlm, self._batches(vlm), partial(self._compared, vlm))
        *totals, tokens = self._summed([total for batch in sums for total in batch], 4).tolist()
        kl, after, before = (total / tokens for total in totals)
        return kl, after, before, int(tokens)

    def _batches(self, vlm: VLM) -> Batches:
        """Each record alone in its row, so that a row's tokens are always the same."""
        everything = range(len(self._held_out))
        return Batches(vlm, self._held_out, everything, self._size, together=False, distributed=self._distributed)

    def _remember(self, vlm: VLM, batch: Batch, last: Tensor) -> None:
        for record, states, ids in _rows(batch, last):
            self._states[record] = states.cpu()
            parts = [slice(start, start + TOGETHER) for start in range(0, len(ids), TOGETHER)]
            losses = [_nats(head_logits(vlm, states[part]), ids[part]) for part in parts]
            self._losses[record] = torch.cat(losses) if losses else torch.zeros(0)

    def _compared(self, vlm: VLM, batch: Batch, last: Tensor) -> list[Tensor]:
        """(4,) of each row: KL, −log p after and before, summed over its tokens, and how many they are."""
        sums = []
        for record, states, ids in _rows(batch, last):
            total = torch.zeros(4, dtype=torch.float64)
            original = self._states[record].to(states)
            for start in range(0, len(ids), TOGETHER):
                part = slice(start, start + TOGETHER)
                before, after = (head_logits(vlm, each[part]).log_softmax(-1) for each in (original, states))
                divergence = (before.exp() * (before - after)).sum(-1)
                values = (divergence, -after.gather(1, ids[part, None])[:, 0], self._losses[record][part])
                total += torch.tensor([*(float(value.cpu().double().sum()) for value in values), len(divergence)])
            sums.append(total)
        return sums

    def _summed(self, rows: Sequence[Tensor], width: int) -> Tensor:
        """(width,) fp64: the sum over all processes' rows."""
        total = torch.zeros(width, dtype=torch.float64)
        for row in rows:
            total += row
        self._distributed.all_reduce_(total)
        return total

    def _share_that_ends(self, vlm: VLM) -> float:
        return fmean(answers_that_end(vlm, self._questions, LONGEST)) if self._questions else 0.0


def _rows(batch: Batch, states: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Of each row its record, the states (n, d) from which a text token is predicted, and that token (n,)."""
    ids = batch.ids
    predicted = (batch.real & ~batch.vision)[:, 1:]
    return [
        (row.records[0], states[number, :-1][predicted[number].to(states.device)], ids[number, 1:][predicted[number]])
        for number, row in enumerate(batch.rows)
    ]


def _nats(logits: Tensor, ids: Tensor) -> Tensor:
    """(n,) fp32 on the host: −log p of the tokens `ids` (n,)."""
    return torch.nn.functional.cross_entropy(logits, ids.to(logits.device), reduction="none").float().cpu()
