"""Which records stand in one row: questions about one image share it, and whatever else they begin with in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from chip.model.batching.batch_size import BatchSize
from chip.model.chat import Prompt, common_start

MOST_TOGETHER = 64
MOST_PIXELS = 1 << 26
"""Of the images of a batch: a processor has several copies of them in memory at once."""


@dataclass(frozen=True, slots=True)
class PackedSequence:
    """Some records that go through the model as one row: what they share once, then each one's own tokens."""

    records: tuple[int, ...]
    shared: int
    """Tokens of the text that all begin with, before the first answer; 0 where a record stands alone."""
    tokens: int
    """Length of the row, its image as one token."""


@dataclass(frozen=True)
class Cost:
    """What a row costs in floating-point operations, roughly: enough to say how many questions should share it."""

    per_token: float
    """Of the text model's linear layers."""
    per_pair: float
    """Of attention between two tokens, as a row's tokens are all compared, also where they must not see each other."""
    image: int
    """Tokens that an image's placeholder becomes, less one."""
    longest: int
    """Rows are kept shorter than this: a sliding window counts places in the row."""

    def of(self, row: PackedSequence) -> float:
        length = row.tokens + self.image
        return length * self.per_token + length**2 * self.per_pair


def alone(prompts: Mapping[int, Prompt]) -> list[PackedSequence]:
    """Each record in a row of its own."""
    return [PackedSequence((record,), 0, len(prompt.tokens)) for record, prompt in prompts.items()]


def pack(prompts: Mapping[int, Prompt], cost: Cost, most: int | None = None) -> list[PackedSequence]:
    """Put records of one image into as few rows as pays: more share the image, and more are compared in vain.

    Args:
        prompts: record -> its tokens.
        most: records a row, at most; by default as many as pay.
    """
    # In this order neighbors have most in common.
    order = sorted(prompts, key=lambda record: (prompts[record].tokens, record))
    sizes = [size for size in (2**power for power in range(MOST_TOGETHER.bit_length())) if size <= (most or size)]
    tried = [[join(order[at : at + size], prompts) for at in range(0, len(order), size)] for size in sizes]
    fitting = [rows for rows in tried[1:] if max(row.tokens for row in rows) + cost.image < cost.longest]
    return min([tried[0], *fitting], key=lambda rows: sum(map(cost.of, rows)))


def join(records: Sequence[int], prompts: Mapping[int, Prompt]) -> PackedSequence:
    """One row of records in the order of their tokens: then the first and the last share what all share."""
    lengths = [len(prompts[record].tokens) for record in records]
    if len(records) == 1:
        return PackedSequence(tuple(records), 0, lengths[0])
    # A token of its own before the answer: it predicts the answer's first.
    before = min(len(prompts[record].tokens) - prompts[record].answer for record in records) - 1
    shared = max(0, min(common_start(prompts[records[0]].tokens, prompts[records[-1]].tokens), before))
    return PackedSequence(tuple(records), shared, shared + sum(lengths) - shared * len(records))


def cut(
    rows: Sequence[PackedSequence], size: BatchSize, image: int, pixels_of: Callable[[PackedSequence], int]
) -> Iterator[list[PackedSequence]]:
    """Consecutive rows as batches, each as large as `size` allows when it is asked for; at least a row.

    Args:
        image: tokens that a row's images are more than what stands for them.
        pixels_of: how many pixels a row's images have, before a processor scales them.
    """
    batch: list[PackedSequence] = []
    records = pixels = 0
    for row in rows:  # of ascending length
        records += len(row.records)
        pixels += (own := pixels_of(row))
        tokens = (len(batch) + 1) * (row.tokens + image)
        fits = tokens <= size.tokens if size.records is None else records <= size.records
        if batch and not (fits and pixels <= MOST_PIXELS):
            yield batch
            batch, records, pixels = [], len(row.records), own
        batch.append(row)
    if batch:
        yield batch
