"""From packed sequences to a batch: the one place where a token gets its role, its id and its segment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chip.model.batching.batch import Batch
from chip.model.batching.model_inputs import ModelInputs
from chip.model.batching.packing import PackedSequence
from chip.model.chat import Prompt
from chip.model.families import TOKEN_INPUTS
from chip.model.tokens import SegmentRecords, TokenRole


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


def assemble(
    model: ModelInputs,
    rows: Sequence[PackedSequence],
    prompts: Mapping[int, Prompt],
    heads: Mapping[str, Tensor],
    image_lengths: Mapping[int, Sequence[int]],
) -> Batch:
    """The rows as tensors.

    Args:
        prompts: record -> its tokens.
        heads: the first record of each row, as the processor gives it: with its images' tokens, padded on the right.
        image_lengths: record at the head of a row -> how many tokens each of its images has, where it has several.
    """
    lines, owners, answered = _segments(rows, prompts, heads)
    real = _padded([[True for piece in line for _ in range(len(piece))] for line in lines], False)
    inputs = _inputs(model, lines, heads, real)
    answers = [[n >= len(piece) - piece.answer for piece in line for n in range(len(piece))] for line in lines]
    answer = _padded(answers, False)
    image = (inputs["input_ids"] == model.image_token_id) & real
    images = _image_numbers(image, [image_lengths.get(row.records[0], ()) for row in rows])
    return Batch(
        inputs,
        _roles([prompts[row.records[0]] for row in rows], real, image, images, answer),
        token_ids(inputs["input_ids"], image, images),
        images,
        _padded([[piece.segment for piece in line for _ in range(len(piece))] for line in lines], 0),
        answer,
        owners,
        answered,
        tuple(rows),
    )


def _segments(
    rows: Sequence[PackedSequence], prompts: Mapping[int, Prompt], heads: Mapping[str, Tensor]
) -> tuple[list[list[_Piece]], SegmentRecords, Tensor]:
    """Each row's pieces, which records own each segment, and the record whose answer stands in it (segments,)."""
    lines: list[list[_Piece]] = []
    owners: list[tuple[int, int]] = []
    answered: list[int] = []
    for row, length in zip(rows, heads["attention_mask"].sum(1).tolist(), strict=True):
        line = list(_pieces(row, length, prompts, len(answered)))
        shares = len(line) > len(row.records)  # the first piece is everybody's
        if shares:
            owners += [(line[0].segment, record) for record in row.records]
        owners += [(piece.segment, record) for piece, record in zip(line[shares:], row.records, strict=True)]
        answered += [*row.records[:1] * shares, *row.records]
        lines.append(line)
    segment, record = torch.tensor(owners).T
    return lines, SegmentRecords(segment, record, len(answered)), torch.tensor(answered)


def _roles(first: Sequence[Prompt], real: Tensor, image: Tensor, images: Tensor, answer: Tensor) -> Tensor:
    """(B, T) int64: as `token_roles`, of rows that begin with these prompts.

    A question's words are no prefix, even where they stand before an image.
    """
    place = torch.arange(real.shape[1])
    roles = token_roles(real, image, images, answer, place < torch.tensor([[prompt.prefix] for prompt in first]))
    starts = [len(place) if prompt.words_first is None else prompt.words_first for prompt in first]
    roles[(roles == TokenRole.PREFIX) & (place >= torch.tensor(starts)[:, None])] = TokenRole.QUESTION
    return roles


def _image_numbers(image: Tensor, lengths: Sequence[Sequence[int]]) -> Tensor:
    """(B, T) int64: of each piece of an image, which of its row's images that is, from 0; elsewhere it means nothing.

    Args:
        image: (B, T) bool: pieces of an image.
        lengths: of each row, how many pieces each of its images has; empty for a row with one image or none.
    """
    ends = [torch.tensor(row).cumsum(0) if row else torch.tensor([image.shape[1]]) for row in lengths]
    place = (image.cumsum(1) - 1).clamp(min=0)
    numbers = [torch.bucketize(places, end, right=True) for places, end in zip(place, ends, strict=True)]
    return torch.stack(numbers).clamp(max=max(len(end) for end in ends) - 1)


def token_roles(real: Tensor, image: Tensor, images: Tensor, answer: Tensor, prefix: Tensor) -> Tensor:
    """(B, T) int64: each token's `TokenRole`.

    Args:
        real: (B, T) bool: no padding.
        image: (B, T) bool: pieces of an image.
        images: (B, T) int64: which image of the row they are a piece of, from 0.
        answer: (B, T) bool: an answer's tokens.
        prefix: (B, T) bool: what stands before any question, in rows without an image.
    """
    first = image & (images == 0)
    ahead = first.flip(1).cumsum(1).flip(1) > 0  # there is still some of the first image to come
    predicts = torch.nn.functional.pad(answer[:, 1:], (0, 1))
    roles = torch.where(ahead | prefix, TokenRole.PREFIX, TokenRole.QUESTION)
    roles[answer | predicts] = TokenRole.ANSWER
    roles[image] = TokenRole.IMAGE
    roles[~real] = TokenRole.PADDING
    return roles


def token_ids(input_ids: Tensor, image: Tensor, images: Tensor) -> Tensor:
    """(B, T) int64: a text token's vocabulary id, an image token's place in its image, from 0.

    Args:
        image, images: as `token_roles` takes them.
    """
    ids = input_ids.clone()
    for number in range(int(images.max()) + 1):
        own = image & (images == number)
        ids = torch.where(own, own.cumsum(1) - 1, ids)
    return ids


def _pieces(row: PackedSequence, length: int, prompts: Mapping[int, Prompt], segment: int) -> Iterator[_Piece]:
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
    model: ModelInputs, lines: Sequence[Sequence[_Piece]], heads: Mapping[str, Tensor], real: Tensor
) -> dict[str, Tensor]:
    """What the model takes. `real` (B, T) bool: no padding."""
    later = _padded([[not piece.columns for piece in line for _ in range(len(piece))] for line in lines], False)
    columns = _padded([[n for piece in line for n in piece.columns or [0] * len(piece)] for line in lines], 0)
    own = _padded([[n for piece in line for n in piece.own or [0] * len(piece)] for line in lines], 0)
    row = torch.arange(len(lines))[:, None]
    inputs = dict(heads)
    for name, values in heads.items():
        if name in TOKEN_INPUTS:  # of each token: its id, mask, kind (0 for text)
            inputs[name] = torch.where(later, own if name == "input_ids" else 0, values[row, columns])
    inputs["input_ids"].masked_fill_(~real, model.prompts.pad)
    inputs["attention_mask"] = real.to(heads["attention_mask"].dtype)
    if max(map(len, lines)) > 1:
        # A later record's own tokens stand where the head's stand: behind what they share.
        start = torch.tensor([len(line[0]) if len(line) > 1 else 0 for line in lines])[:, None]
        place = _padded([[n for piece in line for n in range(len(piece))] for line in lines], 0)
        positions = model.positions(heads)  # (..., B, T of the heads)
        inputs["position_ids"] = torch.where(later, positions[..., row, start] + place, positions[..., row, columns])
    return inputs


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """(B, T): the rows, filled up on the right; bool where they are."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
