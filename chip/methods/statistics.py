"""Streaming statistics of activations: what passes through a model fill and methods read.

Sums only, so that batches, processes and machines add up; means are taken when they are read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chip.distributed import DistributedContext
from chip.kernels.gram import accumulate_gram, accumulation_dtype
from chip.kernels.symmetric import SymmetricMatrix, SymmetricSum

MIN_TOKENS = 512
"""Tokens that are added to a second moment at once, at least, but for the last."""
MUCH_LONGER = 4.0
"""Times the length of the median token: few are, apart from attention sinks."""


class FirstMoment:
    """Σ x over tokens, one row a group."""

    def __init__(self, groups: int, width: int, device: torch.device) -> None:
        self.count = torch.zeros(groups, dtype=accumulation_dtype(device), device=device)
        self.total = torch.zeros(groups, width, dtype=accumulation_dtype(device), device=device)

    def update(self, x: Tensor, membership: Tensor) -> None:
        """Add x (n, width) to the groups each row is in: membership (n, groups), weights or bool."""
        weights = membership.to(self.total.dtype)
        self.count += weights.sum(0)
        self.total += weights.T @ x.to(self.total.dtype)

    def merge(self, distributed: DistributedContext) -> None:
        distributed.all_reduce_(self.count, self.total)

    @property
    def mean(self) -> Tensor:
        """(groups, width); zero for a group without tokens."""
        return self.total / self.count.clamp(min=1)[:, None]


class GroupedMean:
    """Σ x over tokens, one row for each key that has come up."""

    def __init__(self, width: int, device: torch.device, kinds: int = 1) -> None:
        """`kinds`: key % kinds is the kind of a token; only those of one kind stand in for each other."""
        self._kinds = kinds
        self.keys = torch.empty(0, dtype=torch.int64, device=device)
        """(k,) ascending."""
        self.count = torch.empty(0, dtype=accumulation_dtype(device), device=device)
        self.total = torch.empty(0, width, dtype=accumulation_dtype(device), device=device)

    def update(self, x: Tensor, keys: Tensor, weights: Tensor) -> None:
        """Add x (n, width), each as often as weights (n,) says, to the rows of keys (n,).

        The sums of one batch are taken in fp32, or in fp64 where x has it.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        unique, rows = torch.unique(keys, return_inverse=True)
        total = x.new_zeros(len(unique), x.shape[1]).index_add_(0, rows, x * weights.to(x.dtype)[:, None])
        count = self.count.new_zeros(len(unique)).index_add_(0, rows, weights.to(self.count.dtype))
        self._add(total, count, unique)

    def merge(self, distributed: DistributedContext) -> None:
        keys = distributed.union(self.keys)
        self._add(self.total.new_zeros(len(keys), self.total.shape[1]), self.count.new_zeros(len(keys)), keys)
        distributed.all_reduce_(self.count, self.total)

    def _add(self, total: Tensor, count: Tensor, keys: Tensor) -> None:
        known, self.keys = self.keys, torch.unique(torch.cat((self.keys, keys)))
        if len(self.keys) > len(known):
            old_rows = torch.searchsorted(self.keys, known)
            self.count = self.count.new_zeros(len(self.keys)).index_copy_(0, old_rows, self.count)
            self.total = self.total.new_zeros(len(self.keys), total.shape[1]).index_copy_(0, old_rows, self.total)
        rows = torch.searchsorted(self.keys, keys)
        self.count.index_add_(0, rows, count)
        self.total.index_add_(0, rows, total.to(self.total.dtype))

    def mean_at(self, keys: Tensor) -> Tensor:
        """(n, width): the mean at each key; where it never came up, over all keys of its kind (zero without any)."""
        result = self.total.new_zeros(len(keys), self.total.shape[1])
        for kind in range(self._kinds):
            own = self.keys % self._kinds == kind
            if own.any():
                result[keys % self._kinds == kind] = self.total[own].sum(0) / self.count[own].sum()
        known = torch.isin(keys, self.keys)
        rows = torch.searchsorted(self.keys, keys[known])
        result[known] = self.total[rows] / self.count[rows, None]
        return result


def _much_longer(x: Tensor) -> Tensor:
    """(n,) bool: tokens that are longer than the median one by `MUCH_LONGER`."""
    lengths = torch.linalg.vector_norm(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)
    longer: Tensor = lengths > MUCH_LONGER * (lengths.median() if len(lengths) else 1.0)
    return longer


class CrossMoment:
    """Σ (x − x₀) xᵀ over the tokens of one group: by how much what comes in is no longer what came in before."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.total = torch.zeros(width, width, dtype=accumulation_dtype(device), device=device)

    def update(self, x: Tensor, original: Tensor, weights: Tensor) -> None:
        """Add x (n, width), before any edit x₀ (n, width), each as often as weights (n,) says.

        The product of one batch is taken in fp32, or in fp64 where x has it.
        """
        x, original = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (x, original))
        self.total += ((x - original) * weights.to(x.dtype)[:, None]).T @ x

    def merge(self, distributed: DistributedContext) -> None:
        distributed.all_reduce_(self.total)


class SecondMoment:
    """Σ x xᵀ over the tokens of one group.

    A few tokens wait for more: to add to a (width, width) matrix costs as much as the product of some hundred.

    Attention sinks are added in the dtype of the sum: a product in fp32 would be off by more than a ridge that goes by
    all other tokens, and the sum would not be positive semidefinite any more.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=accumulation_dtype(device), device=device)
        self._total = SymmetricMatrix(width, accumulation_dtype(device), device)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def bytes(width: int) -> int:
        """Bytes that it takes, at most."""
        return SymmetricMatrix.bytes(width)

    @property
    def total(self) -> SymmetricMatrix:
        """(width, width)."""
        self._add_waiting()
        return self._total

    @property
    def mean(self) -> SymmetricSum:
        """E[x xᵀ] (width, width); zero without tokens."""
        return SymmetricSum(((1 / max(1.0, float(self.count)), self.total),))

    def update(self, x: Tensor, weights: Tensor) -> None:
        """Add the tokens x (n, width), each as often as weights (n,) says; x is kept for a while."""
        self.count += weights.sum()
        self._waiting.append((x, weights))
        if sum(len(weights) for _, weights in self._waiting) >= MIN_TOKENS:
            self._add_waiting()

    def _add_waiting(self) -> None:
        if self._waiting:
            x, weights = (torch.cat(each) for each in zip(*self._waiting, strict=True))
            self._waiting.clear()
            long = _much_longer(x)
            if long.any():
                accumulate_gram(self._total, x[long].to(self._total.dtype), weights[long])
                x, weights = x[~long], weights[~long]
            accumulate_gram(self._total, x, weights)

    def merge(self, distributed: DistributedContext) -> None:
        distributed.all_reduce_(self.count, *self.total.panels)
