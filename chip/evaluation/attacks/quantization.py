"""Rounding a model's weights as a quantized deployment would: what a small update hid, it may bring back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chip.evaluation.attacks.base import Attack
from chip.evaluation.context import EvalContext
from chip.evaluation.quantizers import nf4, q4_k, round_to_nearest
from chip.model.loading import VLM
from chip.model.restoring import restoring

Quantizer = Callable[[Tensor], Tensor]

SCHEMES: Mapping[str, Quantizer] = {
    "8 bits": partial(round_to_nearest, bits=8, group=32),
    "8 bits per channel": partial(round_to_nearest, bits=8, group=None),
    "4 bits": partial(round_to_nearest, bits=4, group=32),
    "NF4": nf4,
    "Q4_K": q4_k,
}
"""Name -> what it makes of the weights of a linear layer, (rows, columns)."""


class Quantization(Attack):
    name = "quantization"
    help = "The model's weights are rounded to 8 and to 4 bits, also as bitsandbytes (NF4) and GGUF (Q4_K) do."
    standard = True

    def run(self, context: EvalContext) -> None:
        for scheme, quantize in SCHEMES.items():
            with quantized(context.vlm, quantize):
                context.score_attacked(f"{self.name}: {scheme}")


@torch.no_grad()
def quantize_linears(model: Any, bits: int = 4, group: int | None = 32) -> None:
    """Round the weights of every linear layer but the head, in place."""
    for name in _linears(model):
        weight = model.get_parameter(name)
        weight.copy_(round_to_nearest(weight, bits, group))


@contextmanager
def quantized(vlm: VLM, quantize: Quantizer) -> Iterator[None]:
    """Every linear layer but the head is quantized for a while; afterwards the weights are as before, bit for bit, from
    a copy in the host's memory."""
    with restoring(vlm):
        for name in _linears(vlm.model):
            vlm.set_parameter(name, vlm.weights.hold(quantize(vlm.parameter(name))))
        yield


def _linears(model: Any) -> list[str]:
    """Names of the weights of all linear layers but the head."""
    head = model.get_output_embeddings()
    layers = model.named_modules()
    return [f"{name}.weight" for name, layer in layers if isinstance(layer, nn.Linear) and layer is not head]
