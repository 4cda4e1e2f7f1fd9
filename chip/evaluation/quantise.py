"""Rounding a model's weights as a quantised deployment would: what a small update hid, it may bring back."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn


def round_to_nearest(weight: Tensor, bits: int = 4, group: int = 32) -> Tensor:
    """Symmetric round-to-nearest with one scale for each `group` of consecutive weights of a row.

    Args:
        weight: (rows, columns), any float dtype; the last group of a row may be shorter.

    Returns:
        The weights a `bits`-bit deployment computes with, in the same dtype and shape.
    """
    columns = weight.shape[1]
    padded = nn.functional.pad(weight.float(), (0, -columns % group))
    groups = rearrange(padded, "rows (groups group) -> rows groups group", group=group)
    top = 2 ** (bits - 1) - 1
    scale = (groups.abs().amax(-1, keepdim=True) / top).clamp(min=torch.finfo(torch.float32).tiny)
    rounded: Tensor = (groups / scale).round().clamp(-top - 1, top) * scale
    flat: Tensor = rearrange(rounded, "rows groups group -> rows (groups group)")
    return flat[:, :columns].to(weight.dtype)


@torch.no_grad()
def quantise_linears(model: Any, bits: int = 4, group: int = 32) -> None:
    """Round the weights of every linear layer but the head, in place."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.weight.copy_(round_to_nearest(module.weight, bits, group))
