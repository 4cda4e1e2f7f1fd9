"""What the methods by training minimize, on the logits of answers' tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Answers:
    """What a model says of the answers of some records; one row a token of an answer."""

    logits: Tensor
    """(n, vocabulary) fp32."""
    wanted: Tensor
    """(n,) int64: the token."""
    records: Tensor
    """(n,) int64: whose answer it belongs to, numbered from 0."""

    @property
    def logs(self) -> Tensor:
        """(n, vocabulary): log-probabilities."""
        return self.logits.log_softmax(-1)

    @property
    def cross_entropy(self) -> Tensor:
        """Mean over tokens."""
        return functional.cross_entropy(self.logits, self.wanted)

    @property
    def log_probability(self) -> Tensor:
        """(records,): log π(answer | question), summed over the answer's tokens."""
        of_token = self.logs.gather(1, self.wanted[:, None])[:, 0]
        total = of_token.new_zeros(int(self.records.max()) + 1)
        return total.index_add(0, self.records, of_token)


def kl_divergence(reference: Tensor, logs: Tensor) -> Tensor:
    """KL(reference ‖ model), mean over tokens; both log-probabilities (n, vocabulary)."""
    return functional.kl_div(logs, reference, reduction="batchmean", log_target=True)


def negative_preference(log_probability: Tensor, reference: Tensor, beta: float) -> Tensor:
    """(2 / β) E[log(1 + (π / π_ref)^β)] over records: arXiv 2404.05868, equation 3. β → 0 makes its gradient that of
    gradient ascent; it vanishes as π / π_ref does.

    Args:
        log_probability, reference: (records,): of the answers, log π and log π_ref.
    """
    return 2 / beta * functional.softplus(beta * (log_probability - reference)).mean()


def concatenated(parts: Sequence[Answers]) -> Answers:
    """As one; records are numbered on."""
    first, records = 0, []
    for part in parts:
        records.append(part.records + first)
        first += int(part.records.max()) + 1
    return Answers(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.wanted for part in parts]),
        torch.cat(records),
    )
