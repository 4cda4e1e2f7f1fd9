"""Which of a record's tokens are of which of its images."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from chip.data.record import Record
from chip.errors import InputError
from chip.model.batching.model_inputs import ModelInputs


def image_lengths(model: ModelInputs, record: Record, image: Tensor) -> list[int]:
    """How many tokens each of the record's images has.

    Mostly something stands between two images, a line break or what a template puts around each. Where images are cut
    into tiles, which have words between them, each image is given to the processor alone and counted.

    Args:
        image: (T,) bool: pieces of an image, in the record as the processor gives it.

    Raises:
        InputError: neither tells.
    """
    count, total = len(record.images), int(image.sum())
    edges = torch.diff(image.int(), prepend=torch.zeros(1, dtype=torch.int32), append=torch.zeros(1, dtype=torch.int32))
    starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    if len(starts) == count:
        return (ends - starts).tolist()
    alone = [_pieces(model, replace(record, image=each)) for each in record.images]
    if sum(alone) != total:
        raise InputError(f"{record.where}: its {total} image tokens cannot be told apart; give one image a record")
    return alone


def _pieces(model: ModelInputs, record: Record) -> int:
    short = replace(record, question="?", answer="?", history=(), more_images=())
    return int((model.prompts.inputs([short])["input_ids"] == model.image_token_id).sum())
