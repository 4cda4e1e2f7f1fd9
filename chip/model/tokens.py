"""What one batch shows of one linear map: its tokens, what each of them is, and whose records they belong to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from chip.distributed import DistributedContext


@dataclass(frozen=True)
class SegmentRecords:
    """Which records own each segment of tokens: one owns what it says itself, all that ask about an image own that."""

    segments: Tensor
    """(p,) int64: of each pair, the segment."""
    records: Tensor
    """(p,) int64: of each pair, the record."""
    count: int
    """How many segments there are."""

    def to(self, device: torch.device) -> SegmentRecords:
        return SegmentRecords(self.segments.to(device), self.records.to(device), self.count)

    def total(self, of_records: Tensor) -> Tensor:
        """(segments, ...): the sum over each segment's owners of what `of_records` (records, ...) holds for them."""
        total = of_records.new_zeros(self.count, *of_records.shape[1:])
        return total.index_add_(0, self.segments, of_records[self.records])


class TokenRole(IntEnum):
    """Of what of a record a token is one."""

    PREFIX = 0
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
    owners: SegmentRecords
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
        owners, parts = self.owners, len(TokenRole)
        length = torch.bincount(self.segments * parts + self.parts, minlength=owners.count * parts)
        records, place = torch.unique(owners.records, return_inverse=True)
        lengths = length.new_zeros(len(records), parts)
        lengths.index_add_(0, place, length.view(owners.count, parts)[owners.segments])
        each = of_records[records] / lengths.clamp(min=1).view(*lengths.shape, *[1] * (of_records.dim() - 2))
        return replace(owners, records=place).total(each)[self.segments, self.parts]


class Statistics(Protocol):
    """What is collected of a site's tokens, batch by batch."""

    def update(self, tokens: Tokens) -> None: ...

    def merge(self, distributed: DistributedContext) -> None:
        """Add up what all processes have collected; then each has all of it."""
