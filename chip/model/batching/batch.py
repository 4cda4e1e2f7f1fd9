"""Rows of records as tensors: what the model takes, and whose each token is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chip.model.batching.packing import Row
from chip.model.chat import Prompt
from chip.model.tokens import SegmentRecords, TokenRole

if TYPE_CHECKING:
    from chip.model.loading import VLM


@dataclass(frozen=True)
class Batch:
    """Some rows as the model takes them, padded on the right."""

    inputs: Mapping[str, Tensor]
    """Keyword arguments of the model's forward."""
    segments: Tensor
    """(B, T) int64: the segment each token lies in; −1 for padding."""
    keys: Tensor
    """(B, T) int64: the vocabulary id; −1 − its index in the row's image for a piece of the image."""
    answer: Tensor
    """(B, T) bool: an answer's tokens, and what ends its turn."""
    owners: SegmentRecords
    shared: Tensor
    """(B,) int64: the segment that all others of the row see; −1 where a record stands alone."""
    rows: tuple[Row, ...]

    @property
    def records(self) -> int:
        """How many records it holds."""
        return sum(len(row.records) for row in self.rows)

    @property
    def real(self) -> Tensor:
        """(B, T) bool: no padding."""
        return self.segments >= 0

    @property
    def vision(self) -> Tensor:
        """(B, T) bool: tokens that stand for a piece of the image."""
        return self.keys < 0

    @property
    def parts(self) -> Tensor:
        """(B, T) int64: each token's `Part`; of padding it means nothing."""
        vision, before = self.vision, torch.nn.functional.pad(self.answer[:, 1:], (0, 1))
        ahead = vision.flip(1).cumsum(1).flip(1) > 0  # there is still some of the image to come
        parts = torch.where(ahead, TokenRole.PREFIX, TokenRole.QUESTION)
        parts[vision] = TokenRole.IMAGE
        parts[self.answer | before] = TokenRole.ANSWER
        return parts

    @property
    def visible(self) -> Tensor | None:
        """(B, 1, T, T) bool: which token may see which, as far as that is a matter of segments.

        None where each record has a row of its own, and there is nothing to keep apart.
        """
        if not (self.shared >= 0).any():
            return None
        same = self.segments[:, :, None] == self.segments[:, None, :]
        shared = (self.segments == self.shared[:, None])[:, None, :]
        padding = ~self.real[:, :, None]  # sees all that the model lets it: attention to nothing is NaN
        return (same | shared | padding)[:, None]

    def owner(self, segments: Tensor) -> Tensor:
        """The one record that owns each of these segments; not for shared ones."""
        owner = torch.zeros(self.owners.count, dtype=torch.int64, device=segments.device)
        return owner.index_copy_(0, self.owners.segments, self.owners.records)[segments]

    def to(self, device: torch.device) -> Batch:
        return Batch(
            {name: value.to(device) for name, value in self.inputs.items()},
            self.segments.to(device),
            self.keys.to(device),
            self.answer.to(device),
            self.owners.to(device),
            self.shared.to(device),
            self.rows,
        )

    def without_inputs(self) -> Batch:
        return replace(self, inputs={})


@dataclass(frozen=True, slots=True)
class _Piece:
    """Consecutive tokens of one segment: some of the row's head as the processor gives it, or a later record's own."""

    segment: int
    columns: range
    """Of the head; empty for a later record's own."""
    own: tuple[int, ...]
    answer: int
    """How many of the tokens, at the end, are an answer."""

    def __len__(self) -> int:
        return len(self.columns) or len(self.own)


def assemble(vlm: VLM, rows: Sequence[Row], prompts: Mapping[int, Prompt], heads: Mapping[str, Tensor]) -> Batch:
    """The rows as tensors.

    Args:
        prompts: record -> its tokens.
        heads: the first record of each row, as the processor gives it: with its image's tokens, padded on the right.
    """
    lines, owners, shared = [], [], []
    count = 0
    for row, length in zip(rows, heads["attention_mask"].sum(1).tolist(), strict=True):
        line = list(_pieces(row, length, prompts, count))
        together = len(row.records) > 1
        if together:
            owners += [(count, record) for record in row.records]
        owners += [(piece.segment, record) for piece, record in zip(line[together:], row.records, strict=True)]
        shared.append(count if together else -1)
        lines.append(line)
        count += len(line)
    inputs, segments = _inputs(vlm, lines, heads)
    vision = (inputs["input_ids"] == vlm.image_token_id) & (segments >= 0)
    answers = [[n >= len(piece) - piece.answer for piece in line for n in range(len(piece))] for line in lines]
    segment, record = torch.tensor(owners).T
    return Batch(
        inputs,
        segments,
        torch.where(vision, -vision.cumsum(1), inputs["input_ids"]),
        _padded(answers, False),
        SegmentRecords(segment, record, count),
        torch.tensor(shared),
        tuple(rows),
    )


def _pieces(row: Row, length: int, prompts: Mapping[int, Prompt], segment: int) -> Iterator[_Piece]:
    """What all share, where there are several; then each record's own. `length`: of the head."""
    head, *others = (prompts[record] for record in row.records)
    start = length - len(head.tokens) + row.shared if others else 0  # behind the image, which has its full length here
    if others:
        yield _Piece(segment, range(start), (), 0)
        segment += 1
    yield _Piece(segment, range(start, length), (), head.answer)
    for number, prompt in enumerate(others, start=segment + 1):
        yield _Piece(number, range(0), prompt.tokens[row.shared :], prompt.answer)


def _inputs(
    vlm: VLM, lines: Sequence[Sequence[_Piece]], heads: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """What the model takes, and the segment of each token (B, T)."""
    segments = _padded([[piece.segment for piece in line for _ in range(len(piece))] for line in lines], -1)
    columns = _padded([[n for piece in line for n in piece.columns or [-1] * len(piece)] for line in lines], 0)
    own = _padded([[n for piece in line for n in piece.own or [0] * len(piece)] for line in lines], 0)
    row, later = torch.arange(len(lines))[:, None], columns < 0
    columns = columns.clamp(min=0)
    inputs = dict(heads)
    for name, values in heads.items():
        if values.shape == heads["input_ids"].shape:  # of each token: its id, mask, kind (0 for text)
            inputs[name] = torch.where(later, own if name == "input_ids" else 0, values[row, columns])
    inputs["input_ids"].masked_fill_(segments < 0, vlm.prompts.pad)
    inputs["attention_mask"] = (segments >= 0).to(heads["attention_mask"].dtype)
    if max(map(len, lines)) > 1:
        # A later record's own tokens stand where the head's stand: behind what they share.
        start = torch.tensor([len(line[0]) if len(line) > 1 else 0 for line in lines])[:, None]
        place = _padded([[n for piece in line for n in range(len(piece))] for line in lines], 0)
        positions = vlm.positions(heads)  # (..., B, T of the heads)
        inputs["position_ids"] = torch.where(later, positions[..., row, start] + place, positions[..., row, columns])
    return inputs, segments


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
