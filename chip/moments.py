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
    vision: Tensor
    """(n,) bool: the token stands for a piece of the image."""


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
