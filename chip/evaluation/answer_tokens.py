"""What a model holds of each token of an answer, beside the token's own probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chip.data.record import Record
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.retry import run_batches
from chip.model.loading import VLM
from chip.model.scoring import answer_logits

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens of one answer, in their order; the last one ends the turn."""

    log_probability: Array
    """(t,): log p(x_t | x_<t), the question and the image among what is before."""
    standardized: Array
    """(t,): (log p(x_t | x_<t) − μ) / σ; mean and standard deviation of log p(z | x_<t) over z ~ p(· | x_<t)."""
    hit: NDArray[np.bool_]
    """(t,): whether x_t is the most probable token."""

    def last(self, count: int) -> AnswerTokens:
        """The last `count` of them: what follows a beginning that was given."""
        return AnswerTokens(self.log_probability[-count:], self.standardized[-count:], self.hit[-count:])


def standardize(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) log-probabilities of the tokens `wanted` (n,), and the same in standard deviations from their mean.

    Args:
        logits: (n, vocabulary), fp32 or wider.
    """
    logs = logits.log_softmax(-1)
    probability = logs.exp()
    mean = (probability * logs).sum(-1, keepdim=True)
    deviation = (probability * (logs - mean) ** 2).sum(-1).sqrt()
    own = logs.gather(1, wanted[:, None])[:, 0]
    # Where all tokens that count are alike, what deviates is rounding, and nothing is above or below the mean.
    rounding = torch.finfo(logs.dtype).eps * (1 + mean[:, 0].abs())
    return own, torch.where(deviation > rounding, (own - mean[:, 0]) / deviation, 0.0)


def answer_tokens(
    vlm: VLM,
    records: Sequence[Record],
    size: BatchSize | None = None,
    on_batch: Callable[[int], None] = lambda _: None,
    during: Callable[[Batch], AbstractContextManager[object]] = lambda _: nullcontext(),
) -> list[AnswerTokens]:
    """The tokens of each record's answer, the answer given.

    Args:
        during: what is active while a batch runs, such as a change of hidden states.

    Raises:
        InputError, RunError: as `run_batches`.
    """
    result: dict[int, AnswerTokens] = {}

    @torch.no_grad()
    def compute(batch: Batch) -> None:
        with during(batch):
            states = vlm.hidden_states(batch)
        owners, logits, wanted = answer_logits(vlm, batch, states)
        logs, standardized = (each.double().cpu().numpy() for each in standardize(logits, wanted))
        hits = (logits.argmax(-1) == wanted).cpu().numpy()
        of = owners.cpu().numpy()
        for index in np.unique(of).tolist():
            result[index] = AnswerTokens(logs[of == index], standardized[of == index], hits[of == index])
        on_batch(batch.records)

    run_batches(vlm.batches(records, size=size), compute)
    return [result[index] for index in range(len(records))]
