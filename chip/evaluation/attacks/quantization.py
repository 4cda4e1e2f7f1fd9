"""Rounding a model's weights as a quantized deployment would: what a small update hid, it may bring back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from chip.evaluation.attacks.base import Attack
from chip.evaluation.context import EvalContext
from chip.model.loading import VLM
from chip.model.restoring import restoring

SCHEMES: Mapping[str, tuple[int, int | None]] = {
    "8 bits": (8, 32),
    "8 bits per channel": (8, None),
    "4 bits": (4, 32),
}
"""Name -> bits, and weights that share a scale; None: a whole row."""


class Quantization(Attack):
    name = "quantization"
    help = "The model's weights are rounded to 8 and to 4 bits."

    def run(self, context: EvalContext) -> None:
        for scheme, (bits, group) in SCHEMES.items():
            with quantized(context.vlm, bits, group):
                context.score_attacked(f"{self.name}: {scheme}")


def round_to_nearest(weight: Tensor, bits: int = 4, group: int | None = 32) -> Tensor:
    """Symmetric round-to-nearest with one scale for each `group` of consecutive weights of a row.

    Args:
        weight: (rows, columns), any float dtype; the last group of a row may be shorter.
        group: None: one scale for each row, which is an output channel.

    Returns:
        The weights a `bits`-bit deployment computes with, in the same dtype and shape.
    """
    columns = weight.shape[1]
    group = group or columns
    padded = nn.functional.pad(weight.float(), (0, -columns % group))
    groups = rearrange(padded, "rows (groups group) -> rows groups group", group=group)
    top = 2 ** (bits - 1) - 1
    scale = (groups.abs().amax(-1, keepdim=True) / top).clamp(min=torch.finfo(torch.float32).tiny)
    rounded: Tensor = (groups / scale).round().clamp(-top - 1, top) * scale
    flat: Tensor = rearrange(rounded, "rows groups group -> rows (groups group)")
    return flat[:, :columns].to(weight.dtype)


@torch.no_grad()
def quantize_linears(model: Any, bits: int = 4, group: int | None = 32) -> None:
    """Round the weights of every linear layer but the head, in place."""
    for name in _linears(model):
        weight = model.get_parameter(name)
        weight.copy_(round_to_nearest(weight, bits, group))


@contextmanager
def quantized(vlm: VLM, bits: int, group: int | None) -> Iterator[None]:
    """The same for a while; afterwards the weights are as before, bit for bit, from a copy in the host's memory."""
    with restoring(vlm):
        for name in _linears(vlm.model):
            vlm.set_parameter(name, round_to_nearest(vlm.parameter(name), bits, group))
        yield


def _linears(model: Any) -> list[str]:
    """Names of the weights of all linear layers but the head."""
    head = model.get_output_embeddings()
    layers = model.named_modules()
    return [f"{name}.weight" for name, layer in layers if isinstance(layer, nn.Linear) and layer is not head]
