"""Whose the tokens are that pass through a site."""

from __future__ import annotations

import torch
from torch import Tensor

from chip.errors import InputError
from chip.model.batching.batch import Batch
from chip.model.tokens import TokenRole, Tokens


def text_tokens(x: Tensor, y: Tensor | None, batch: Batch) -> Tokens:
    real = batch.real
    seen = None if y is None else y[real]
    starts = (torch.arange(real.shape[1], device=real.device) == 0).expand_as(real)
    return Tokens(x[real], seen, batch.ids[real], batch.roles[real], batch.segments[real], batch.owners, starts[real])


def connector_tokens(name: str, x: Tensor, y: Tensor | None, batch: Batch) -> Tokens:
    """The connector's tokens by row. Images stand in the order of rows, so counting is enough."""
    flat_x, flat_y = x.flatten(0, -2), None if y is None else y.flatten(0, -2)
    vision, image = batch.vision, torch.full((len(flat_x),), TokenRole.IMAGE, device=x.device)
    starts = torch.zeros_like(image, dtype=torch.bool)
    if flat_x.shape[0] == int(vision.sum()):
        return Tokens(flat_x, flat_y, batch.ids[vision], image, batch.segments[vision], batch.owners, starts)
    # Pooled or cut behind the connector: like images have like shares.
    share, rest = divmod(flat_x.shape[0], len(vision))
    per_row = vision.sum(1)
    if rest or int(per_row.min()) != int(per_row.max()):
        raise InputError(
            f"{name}: {flat_x.shape[0]} image tokens cannot be told apart among {len(vision)} rows; use --batch-size 1"
        )
    ids = torch.arange(share, device=x.device).repeat(len(vision))
    first = batch.segments.gather(1, vision.int().argmax(1, keepdim=True))
    return Tokens(flat_x, flat_y, ids, image, first.repeat_interleave(share), batch.owners, starts)
