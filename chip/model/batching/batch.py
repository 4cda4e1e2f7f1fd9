"""Packed sequences as tensors: what the model takes, and what each token is and whose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chip.model.batching.batch_size import out_of_memory
from chip.model.batching.packing import PackedSequence
from chip.model.tokens import SegmentRecords, TokenRole


@dataclass(frozen=True)
class Batch:
    """Some packed sequences as the model takes them, padded on the right.

    What is said of a token means nothing where its role is `TokenRole.PADDING`.
    """

    inputs: Mapping[str, Tensor]
    """Keyword arguments of the model's forward."""
    roles: Tensor
    """(B, T) int64: each token's `TokenRole`."""
    ids: Tensor
    """(B, T) int64, >= 0: a text token's vocabulary id, an image token's place in its image."""
    images: Tensor
    """(B, T) int64: of an image token, which image of its row it is a piece of, from 0; of others it means nothing."""
    segments: Tensor
    """(B, T) int64: the segment each token lies in."""
    answer: Tensor
    """(B, T) bool: an answer's tokens, and what ends its turn; not the token before it, which has the same role."""
    owners: SegmentRecords
    answered: Tensor
    """(segments,) int64: the record whose answer stands in the segment; where none does, it means nothing."""
    rows: tuple[PackedSequence, ...]

    @property
    def records(self) -> int:
        """How many records it holds."""
        return sum(len(row.records) for row in self.rows)

    @property
    def real(self) -> Tensor:
        """(B, T) bool: no padding."""
        return self.roles != TokenRole.PADDING

    @property
    def starts(self) -> Tensor:
        """(B, T) bool: the first token of each sequence."""
        return self.real & (self.real.cumsum(1) == 1)

    @property
    def vision(self) -> Tensor:
        """(B, T) bool: tokens that stand for a piece of an image."""
        return self.roles == TokenRole.IMAGE

    def image_lengths(self) -> Tensor:
        """(images,) int64: how many tokens each image has, in the order of rows and of places there."""
        vision = self.vision
        row = torch.arange(len(vision), device=vision.device)[:, None].expand_as(vision)[vision]
        pairs = torch.stack((row, self.images[vision]))
        lengths: Tensor = torch.unique_consecutive(pairs, dim=1, return_counts=True)[1]
        return lengths

    @property
    def attention_mask(self) -> Tensor | None:
        """(B, 1, T, T) bool: which token may see which, as far as segments go: one sees what all its records own.

        So a record sees its own tokens and whatever it shares with others, say an image or the turns before its own.
        None where each record has a row of its own, and there is nothing to keep apart.
        """
        if all(len(row.records) == 1 for row in self.rows):
            return None
        real = self.real
        owned = self._members()[self.segments] * real[:, :, None]  # (B, T, R)
        foreign = owned @ (1 - owned).transpose(1, 2)  # (B, T, T): how many owners of the one do not own the other
        padding = ~real[:, :, None]  # sees all that the model lets it: attention to nothing is NaN
        return ((foreign == 0) | padding)[:, None]

    def _members(self) -> Tensor:
        """(segments, R) fp32, 1 or 0: which of its row's records own a segment, by their place in the row."""
        place = {record: index for row in self.rows for index, record in enumerate(row.records)}
        members = torch.zeros(self.owners.count, max(len(row.records) for row in self.rows))
        members[self.owners.segments.cpu(), [place[record] for record in self.owners.records.tolist()]] = 1
        return members.to(self.segments.device)

    def to(self, device: torch.device) -> Batch:
        return Batch(
            {name: value.to(device) for name, value in self.inputs.items()},
            self.roles.to(device),
            self.ids.to(device),
            self.images.to(device),
            self.segments.to(device),
            self.answer.to(device),
            self.owners.to(device),
            self.answered.to(device),
            self.rows,
        )

    def without_inputs(self) -> Batch:
        return replace(self, inputs={})


class BatchTooLargeError(RuntimeError):
    """A batch ran out of memory; the error that says so is its cause."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(f"out of memory in a batch of {len(batch.rows)} rows")
        self.batch = batch


@contextmanager
def guard_memory(batch: Batch) -> Iterator[None]:
    """An out-of-memory error within the block, which runs `batch`, becomes `BatchTooLargeError`."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise BatchTooLargeError(batch) from error
