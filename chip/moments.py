"""Streaming statistics of activations: what passes and operators hand to each other.

Sums only, so that batches, processes and machines add up; means are taken when they are read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from chip.kernels.gram import accumulate_gram, wide_dtype
from chip.processes import Processes

ENOUGH = 512
"""Tokens that are added to a second moment at once, at least, but for the last."""


@dataclass(frozen=True)
class Owners:
    """Which records own each segment of tokens: one owns what it says itself, all that ask about an image own that."""

    segments: Tensor
    """(p,) int64: of each pair, the segment."""
    records: Tensor
    """(p,) int64: of each pair, the record."""
    count: int
    """How many segments there are."""

    def to(self, device: torch.device) -> Owners:
        return Owners(self.segments.to(device), self.records.to(device), self.count)

    def total(self, of_records: Tensor) -> Tensor:
        """(segments, ...): the sum over each segment's owners of what `of_records` (records, ...) holds for them."""
        total = of_records.new_zeros(self.count, *of_records.shape[1:])
        return total.index_add_(0, self.segments, of_records[self.records])


class Part(IntEnum):
    """Of what of a record a token is one."""

    BEGINNING = 0
    """Text before the image: it is everybody's, and has seen nothing."""
    IMAGE = 1
    QUESTION = 2
    ANSWER = 3
    """And the last token before it: what an answer is said from."""


@dataclass(frozen=True)
class Tokens:
    """What one batch shows of one site; padding is left out. A token counts once for each record that owns it."""

    inputs: Tensor
    """(n, d_in): what went into the linear layer."""
    outputs: Tensor | None
    """(n, d_out): what came out of it, bias included; None where nobody asked for it."""
    keys: Tensor
    """(n,) int64: what each token is: its vocabulary id, or −1 − its index in the image for a piece of the image."""
    parts: Tensor
    """(n,) int64: each one's `Part`."""
    segments: Tensor
    """(n,) int64: the segment each token lies in."""
    owners: Owners
    before: Tensor | None = None
    """(n, d_in): what went in before anything was edited; None where that is `inputs`."""

    @property
    def vision(self) -> Tensor:
        """(n,) bool: the token stands for a piece of the image."""
        return self.keys < 0

    def weights(self, of_records: Tensor) -> Tensor:
        """How often each token counts, where every part of a record counts alike, however long it is.

        Args:
            of_records: (records, parts, ...), how often each part of each record counts.

        Returns:
            (n, ...): what `of_records` holds for a token's record and part over that part's length; the sum over all
            records that own the token.
        """
        owners, parts = self.owners, len(Part)
        length = torch.bincount(self.segments * parts + self.parts, minlength=owners.count * parts)
        records, place = torch.unique(owners.records, return_inverse=True)
        lengths = length.new_zeros(len(records), parts)
        lengths.index_add_(0, place, length.view(owners.count, parts)[owners.segments])
        each = of_records[records] / lengths.clamp(min=1).view(*lengths.shape, *[1] * (of_records.dim() - 2))
        return replace(owners, records=place).total(each)[self.segments, self.parts]


class Statistics(Protocol):
    """What is collected of a site's tokens, batch by batch."""

    def update(self, tokens: Tokens) -> None: ...

    def merge(self, processes: Processes) -> None:
        """Add up what all processes have collected; then each has all of it."""


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

    def merge(self, processes: Processes) -> None:
        processes.add_(self.count, self.total)

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

    def update(self, x: Tensor, keys: Tensor, weights: Tensor) -> None:
        """Add x (n, width), each as often as weights (n,) says, to the rows of keys (n,).

        The sums of one batch are taken in fp32, or in fp64 where x has it.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        mine, rows = torch.unique(keys, return_inverse=True)
        total = x.new_zeros(len(mine), x.shape[1]).index_add_(0, rows, x * weights.to(x.dtype)[:, None])
        count = self.count.new_zeros(len(mine)).index_add_(0, rows, weights.to(self.count.dtype))
        self._add(total, count, mine)

    def merge(self, processes: Processes) -> None:
        keys = processes.union(self.keys)
        self._add(self.total.new_zeros(len(keys), self.total.shape[1]), self.count.new_zeros(len(keys)), keys)
        processes.add_(self.count, self.total)

    def _add(self, total: Tensor, count: Tensor, keys: Tensor) -> None:
        known, self.keys = self.keys, torch.unique(torch.cat((self.keys, keys)))
        if len(self.keys) > len(known):
            kept = torch.searchsorted(self.keys, known)
            self.count = self.count.new_zeros(len(self.keys)).index_copy_(0, kept, self.count)
            self.total = self.total.new_zeros(len(self.keys), total.shape[1]).index_copy_(0, kept, self.total)
        rows = torch.searchsorted(self.keys, keys)
        self.count.index_add_(0, rows, count)
        self.total.index_add_(0, rows, total.to(self.total.dtype))

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


class DriftMoment:
    """Σ (x − x₀) xᵀ over the tokens of one group: by how much what comes in is no longer what came in before."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.total = torch.zeros(width, width, dtype=wide_dtype(device), device=device)

    def update(self, x: Tensor, before: Tensor, weights: Tensor) -> None:
        """Add x (n, width), before it x₀ (n, width), each as often as weights (n,) says.

        The product of one batch is taken in fp32, or in fp64 where x has it.
        """
        x, before = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (x, before))
        self.total += ((x - before) * weights.to(x.dtype)[:, None]).T @ x

    def merge(self, processes: Processes) -> None:
        processes.add_(self.total)


class SecondMoment:
    """Σ x xᵀ over the tokens of one group.

    A few tokens wait for more: to add to a (width, width) matrix costs as much as the product of some hundred.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=wide_dtype(device), device=device)
        self._half = torch.zeros(width, width, dtype=wide_dtype(device), device=device)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def size(width: int) -> int:
        """Bytes that it takes, at most."""
        return width**2 * torch.float64.itemsize

    @property
    def half(self) -> Tensor:
        """(width, width): on and above the diagonal; what stands below it means nothing."""
        self._add_waiting()
        return self._half

    def update(self, x: Tensor, weights: Tensor) -> None:
        """Add the tokens x (n, width), each as often as weights (n,) says; x is kept for a while."""
        self.count += weights.sum()
        self._waiting.append((x, weights))
        if sum(len(weights) for _, weights in self._waiting) >= ENOUGH:
            self._add_waiting()

    def _add_waiting(self) -> None:
        if self._waiting:
            x, weights = (torch.cat(each) for each in zip(*self._waiting, strict=True))
            self._waiting.clear()
            accumulate_gram(self._half, x, weights)

    def merge(self, processes: Processes) -> None:
        processes.add_(self.count, self.half)
