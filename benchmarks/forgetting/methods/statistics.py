"""What the closed-form methods collect of a module's tokens: sums over what is forgotten and over what is retained."""

from __future__ import annotations

import torch
from torch import Tensor

from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.kernels.gram import accumulation_dtype
from chip.methods.base import membership
from chip.methods.statistics import SecondMoment
from chip.model.tokens import Tokens


def forget_and_retain(request: ForgetRequest, device: torch.device) -> Tensor:
    """(records, 2) fp32, 1 or 0: which records are forgotten, and which retained."""
    partition = request.partition
    return membership(request, [partition.forget, partition.retained], device)


def token_weights(tokens: Tokens, of_records: Tensor) -> Tensor:
    """(n, ...): how often each token counts, given how often each record does (records, ...)."""
    weights: Tensor = tokens.owners.total(of_records)[tokens.segments]
    return weights


class SecondMoments:
    """E[x xᵀ] of a module's inputs over the tokens of the forgotten, and of the retained."""

    def __init__(self, of_records: Tensor, width: int) -> None:
        self._of_records = of_records
        self._forget, self._retain = (SecondMoment(width, of_records.device) for _ in range(2))

    def update(self, tokens: Tokens) -> None:
        weights = token_weights(tokens, self._of_records)
        for moment, weight in zip((self._forget, self._retain), weights.unbind(1), strict=True):
            moment.update(tokens.inputs[weight > 0], weight[weight > 0])

    def merge(self, distributed: DistributedContext) -> None:
        self._forget.merge(distributed)
        self._retain.merge(distributed)

    @property
    def forget(self) -> Tensor:
        """C_f (d, d)."""
        return self._forget.mean.dense()

    @property
    def retain(self) -> Tensor:
        """C_r (d, d)."""
        return self._retain.mean.dense()


class RecordMeans:
    """Each record's mean over its tokens of what a module puts out."""

    def __init__(self, records: int, width: int, device: torch.device) -> None:
        self.count = torch.zeros(records, dtype=accumulation_dtype(device), device=device)
        self.total = torch.zeros(records, width, dtype=accumulation_dtype(device), device=device)

    def update(self, tokens: Tokens) -> None:
        assert tokens.outputs is not None
        owners, ones = tokens.owners, torch.ones_like(tokens.segments, dtype=self.count.dtype)
        count = self.count.new_zeros(owners.count).index_add_(0, tokens.segments, ones)
        total = self.total.new_zeros(owners.count, self.total.shape[1])
        total.index_add_(0, tokens.segments, tokens.outputs.to(total.dtype))
        self.count.index_add_(0, owners.records, count[owners.segments])
        self.total.index_add_(0, owners.records, total[owners.segments])

    def merge(self, distributed: DistributedContext) -> None:
        distributed.all_reduce_(self.count, self.total)

    @property
    def mean(self) -> Tensor:
        """(records, width); zero for a record that was not seen."""
        return self.total / self.count.clamp(min=1)[:, None]
