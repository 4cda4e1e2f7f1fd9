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
    """Which records own each segment of tokens: each its own question and answer, all of them what they share."""

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
    """What part of a record a token belongs to."""

    PREFIX = 0
    """Text before the record's first image, or before its question where it has none: the same in every record, and it
    has seen nothing."""
    IMAGE = 1
    QUESTION = 2
    ANSWER = 3
    """With the last token before the answer, which predicts its first one."""
    PADDING = 4


@dataclass(frozen=True)
class Tokens:
    """What one batch shows of one target module, without padding. A token counts once for each record that owns it."""

    inputs: Tensor
    """(n, d_in): what went into the linear layer."""
    outputs: Tensor | None
    """(n, d_out): what came out of it, bias included; None where no outputs are needed."""
    ids: Tensor
    """(n,) int64, >= 0: a text token's vocabulary id, an image token's place in its image."""
    roles: Tensor
    """(n,) int64: each one's `TokenRole`."""
    segments: Tensor
    """(n,) int64: the segment each token lies in."""
    owners: SegmentRecords
    starts: Tensor
    """(n,) bool: the first token of a sequence, which pretrained text models use as an attention sink."""
    original_inputs: Tensor | None = None
    """(n, d_in): what went in before anything was edited; None where that is `inputs`."""

    @property
    def vision(self) -> Tensor:
        """(n,) bool: the token stands for a piece of an image."""
        return self.roles == TokenRole.IMAGE

    def weights(self, of_records: Tensor) -> Tensor:
        """How often each token counts, where every role in a record counts alike, however many tokens have it.

        Args:
            of_records: (records, roles, ...), how often each role of each record counts.

        Returns:
            (n, ...): what `of_records` holds for a token's record and role over that role's length; the sum over all
            records that own the token.
        """
        owners, roles = self.owners, len(TokenRole)
        length = torch.bincount(self.segments * roles + self.roles, minlength=owners.count * roles)
        records, row = torch.unique(owners.records, return_inverse=True)
        lengths = length.new_zeros(len(records), roles)
        lengths.index_add_(0, row, length.view(owners.count, roles)[owners.segments])
        weights = of_records[records] / lengths.clamp(min=1).view(*lengths.shape, *[1] * (of_records.dim() - 2))
        return replace(owners, records=row).total(weights)[self.segments, self.roles]


class Statistics(Protocol):
    """What is collected of a target module's tokens, batch by batch."""

    def update(self, tokens: Tokens) -> None: ...

    def merge(self, distributed: DistributedContext) -> None:
        """Add up what all processes have collected; then each has all of it."""
