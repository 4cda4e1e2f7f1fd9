"""Streaming statistics of activations: what passes and operators hand to each other.

Sums only, so that batches, processes and machines merge by `+=`; means are taken when they are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chip.kernels.gram import accumulate_gram, wide_dtype


@dataclass(frozen=True)
class Tokens:
    """What one batch shows of one site; padding is left out."""

    inputs: Tensor
    """(n, d_in): what went into the linear layer."""
    outputs: Tensor
    """(n, d_out): what came out of it, bias included."""
    records: Tensor
    """(n,) int64: the record each token belongs to."""
    keys: Tensor
    """(n,) int64: what each token is: its vocabulary id, or −1 − its index in the image for a piece of the image."""

    @property
    def vision(self) -> Tensor:
        """(n,) bool: the token stands for a piece of the image."""
        return self.keys < 0


class FirstMoment:
    """Σ x over tokens, one row a group."""

    def __init__(self, groups: int, width: int, device: torch.device) -> None:
        self.count = torch.zeros(groups, dtype=wide_dtype(device), device=device)
        self.total = torch.zeros(groups, width, dtype=wide_dtype(device), device=device)

    def update(self, x: Tensor, membership: Tensor) -> None:
        """Add x (n, width) to the groups each row is in: membership (n, groups), weights or bool."""
        weights = membership.to(self.total.dtype)
        self.count += weights.sum(0)
        self.total += weights.T @ x.to(self.total.dtype)

    def __iadd__(self, other: FirstMoment) -> FirstMoment:
        self.count += other.count
        self.total += other.total
        return self

    @property
    def mean(self) -> Tensor:
        """(groups, width); zero for a group without tokens."""
        return self.total / self.count.clamp(min=1)[:, None]


class KeyedMoment:
    """Σ x over tokens, one row for each key that has come up."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.keys = torch.empty(0, dtype=torch.int64, device=device)
        """(k,) ascending."""
        self.count = torch.empty(0, dtype=wide_dtype(device), device=device)
        self.total = torch.empty(0, width, dtype=wide_dtype(device), device=device)

    def update(self, x: Tensor, keys: Tensor) -> None:
        """Add x (n, width) to the rows of keys (n,)."""
        self._add(x.to(self.total.dtype), torch.ones_like(keys, dtype=self.count.dtype), keys)

    def __iadd__(self, other: KeyedMoment) -> KeyedMoment:
        self._add(other.total, other.count, other.keys)
        return self

    def _add(self, total: Tensor, count: Tensor, keys: Tensor) -> None:
        known, self.keys = self.keys, torch.unique(torch.cat((self.keys, keys)))
        if len(self.keys) > len(known):
            kept = torch.searchsorted(self.keys, known)
            self.count = self.count.new_zeros(len(self.keys)).index_copy_(0, kept, self.count)
            self.total = self.total.new_zeros(len(self.keys), total.shape[1]).index_copy_(0, kept, self.total)
        rows = torch.searchsorted(self.keys, keys)
        self.count.index_add_(0, rows, count)
        self.total.index_add_(0, rows, total)

    def mean_at(self, keys: Tensor) -> Tensor:
        """(n, width): the mean at each key; where it never came up, over all keys of its sign (zero without any)."""
        result = self.total.new_zeros(len(keys), self.total.shape[1])
        for alike, mine in ((keys < 0, self.keys < 0), (keys >= 0, self.keys >= 0)):
            if mine.any():
                result[alike] = self.total[mine].sum(0) / self.count[mine].sum()
        known = torch.isin(keys, self.keys)
        rows = torch.searchsorted(self.keys, keys[known])
        result[known] = self.total[rows] / self.count[rows, None]
        return result


class SecondMoment:
    """Σ x xᵀ over the tokens of one group."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.outer = torch.zeros(width, width, dtype=wide_dtype(device), device=device)

    def update(self, x: Tensor) -> None:
        """Add the tokens x (n, width)."""
        self.count += x.shape[0]
        accumulate_gram(self.outer, x)

    def __iadd__(self, other: SecondMoment) -> SecondMoment:
        self.count += other.count
        self.outer += other.outer
        return self

    @property
    def mean(self) -> Tensor:
        """E[x xᵀ], (width, width); zero without tokens."""
        return self.outer / max(self.count, 1)
