"""Records as tensors to learn from, and the order in which they are learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chip.data.record import Record
from chip.model.loading import VLM

NO_PICTURE = -1


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    The names and values of these fields are part of what a trained model is found by: a renamed one is trained anew.
    """

    steps: int = 1000
    batch: int = 128
    together: int = 2
    """Questions of a picture that stand in one batch."""
    sorted_batches: int = 4
    """As many are drawn at a time and sorted by length."""
    jitter: float = 6.0
    """Tokens by which a record may be taken for longer than it is, so that those that stand together change."""
    peak_rate: float = 2e-3
    warm_up: float = 0.05
    """Share of the steps."""
    weight_decay: float = 0.1
    """Of matrices; norms and biases have none."""
    pixel_noise: float = 0.1
    """Standard deviation of noise on the normalized pixels, so that a model knows a picture and not its last bits."""

    def rate(self, step: float) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        warm = max(1, round(self.warm_up * self.steps))
        return self.peak_rate * min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / self.steps)))


@dataclass(frozen=True)
class Batch:
    """Some records, each in a row of its own, and the pictures that they are about."""

    ids: Tensor
    """(B, T) int64"""
    mask: Tensor
    """(B, T) int64: 1 where there is a token, padding on the right"""
    both_ways: bool
    """Whether the tokens of a picture see each other in both directions"""
    positions: Tensor
    """(..., B, T) int64"""
    answer: Tensor
    """(B, T) bool: the answer's tokens, and what ends its turn"""
    pixels: Tensor
    """(pictures, entries, ...): each picture once"""
    picture: Tensor
    """(records with one,) int64: which of the pictures each of them is about"""


class Corpus:
    """Records as tensors on the model's device. All pictures have one size; a record may have none."""

    def __init__(self, vlm: VLM, records: Sequence[Record]) -> None:
        pictured = [number for number, record in enumerate(records) if record.image is not None]
        first = {records[number].image: number for number in reversed(pictured)}
        place = {image: number for number, image in enumerate(first)}
        heads = vlm.prompts.inputs([records[number] for number in first.values()])
        ids, mask, positions = _rows(vlm, records, pictured)
        answers = torch.tensor([prompt.answer for prompt in vlm.prompts.read(records)])
        self._lengths = mask.sum(1)
        self._picture = torch.tensor([place.get(record.image, NO_PICTURE) for record in records])
        at = torch.arange(ids.shape[1])
        answer = (at >= (self._lengths - answers)[:, None]) & (at < self._lengths[:, None])
        self._pixels = heads["pixel_values"].view(len(first), -1, *heads["pixel_values"].shape[1:]).to(vlm.device)
        self._both_ways = "token_type_ids" in heads  # the mark of the families whose pictures are seen so
        self._ids, self._mask, self._answer, self._positions = (
            value.to(vlm.device) for value in (ids, mask, answer, positions)
        )

    def order(self, recipe: Recipe, generator: torch.Generator) -> list[Tensor]:
        """Every record once, as batches of indices in random order.

        Some questions of a picture stay together, so that the vision tower sees the picture once for them; and
        questions of like length, so that little is computed for padding.
        """
        jitter = recipe.jitter * torch.rand(len(self._lengths), generator=generator)
        by_length = (self._lengths + jitter).argsort()
        groups = [
            group
            for picture in range(NO_PICTURE, len(self._pixels))
            for group in torch.split(by_length[self._picture[by_length] == picture], recipe.together)
            if len(group)
        ]
        mixed = [groups[number] for number in torch.randperm(len(groups), generator=generator)]
        each = recipe.batch // recipe.together
        batches = []
        for at in range(0, len(mixed), recipe.sorted_batches * each):
            drawn = sorted(
                mixed[at : at + recipe.sorted_batches * each], key=lambda group: int(self._lengths[group].max())
            )
            batches += [torch.cat(drawn[start : start + each]) for start in range(0, len(drawn), each)]
        return [batches[number] for number in torch.randperm(len(batches), generator=generator)]

    def batch(self, indices: Tensor) -> Batch:
        """The records at `indices`, without the padding that none of them needs."""
        longest = int(self._lengths[indices].max())
        of_records = self._picture[indices]
        pictures, picture = torch.unique(of_records[of_records != NO_PICTURE], return_inverse=True)
        device = self._ids.device
        rows = indices.to(device)
        return Batch(
            self._ids[rows, :longest],
            self._mask[rows, :longest],
            self._both_ways,
            self._positions[..., rows, :longest],
            self._answer[rows, :longest],
            self._pixels[pictures.to(device)],
            picture.to(device),
        )


def _rows(vlm: VLM, records: Sequence[Record], pictured: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T) ids and mask, and (..., B, T) positions, of records of which some have a picture."""
    others = sorted({*range(len(records))}.difference(pictured))
    kinds = [(indices, vlm.prompts.inputs([records[i] for i in indices])) for indices in (pictured, others) if indices]
    longest = max(rows["input_ids"].shape[1] for _, rows in kinds)
    ids = torch.full((len(records), longest), vlm.prompts.pad)
    mask = torch.zeros_like(ids)
    positions = torch.zeros(*vlm.positions(kinds[0][1]).shape[:-2], *ids.shape, dtype=torch.int64)
    for indices, rows in kinds:
        length = rows["input_ids"].shape[1]
        ids[indices, :length], mask[indices, :length] = rows["input_ids"], rows["attention_mask"]
        positions[..., indices, :length] = vlm.positions(rows)  # where there are three numbers, text has one for all
    return ids, mask, positions
