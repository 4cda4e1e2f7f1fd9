"""Drawn worlds are learned fast: by Muon, in hundreds of steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor

from chip.data.record import Record
from chip.demo.corpus import Corpus, Recipe
from chip.demo.training import Trainer, adamw
from chip.model.loading import VLM

EPOCHS = 24
"""Times that a world is learned through."""
BATCH = 128
STEPS = (250, 500)
"""At least and at most."""
TOKEN_NOISE = 0.15
NOT_OF_LAYERS = ("embed", "lm_head")
"""In the names of matrices that Muon is not meant for."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def steps_for(records: int) -> int:
    """Of training on so many."""
    return min(max(ceil(EPOCHS * records / BATCH), STEPS[0]), STEPS[1])


def learn(vlm: VLM, records: Sequence[Record], steps: int, seed: int, seconds: float) -> int:
    """Train the model in place on the answers of `records`; the steps that were taken.

    Args:
        seconds: that it may take; what it comes to then depends on the machine.
    """
    recipe, on_gpu = Recipe(steps=steps, batch=BATCH), vlm.device.type == "cuda"
    vlm.model.train().set_attn_implementation("sdpa" if on_gpu else "eager")  # a GPU waits for calls, a CPU computes
    corpus, start = Corpus(vlm, records), time.monotonic()
    dtype = torch.float32 if on_gpu else torch.bfloat16  # casts are calls too
    optimizer = Muon(vlm.model.named_parameters(), recipe.weight_decay)
    trainer = Trainer(vlm, corpus, recipe, seed, optimizer, dtype, TOKEN_NOISE)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        while trainer.step < steps and (progress := (time.monotonic() - start) / seconds) < 1:
            trainer.advance(progress)
    finally:
        torch.set_float32_matmul_precision(precision)
    return trainer.step


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) for the layers' matrices, all of one shape at once, and AdamW for everything else.

    A matrix moves along its momentum with all singular values made about 1, scaled so that a step is as long as AdamW's
    (Liu et al., arXiv 2502.16982, section 2.2), and both go by one learning rate. With it a model remembers facts in a
    third of AdamW's steps.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]], weight_decay: float, momentum: float = 0.95) -> None:
        known = list(named)
        matrices = [p for name, p in known if p.ndim == 2 and not any(part in name for part in NOT_OF_LAYERS)]
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})
        chosen = {id(parameter) for parameter in matrices}
        self._rest = adamw((parameter for _, parameter in known if id(parameter) not in chosen), weight_decay)
        by_shape = sorted(matrices, key=lambda matrix: matrix.shape)
        self._stacks = [list(same) for _, same in groupby(by_shape, key=lambda matrix: matrix.shape)]
        self._momenta = [torch.zeros(len(stack), *stack[0].shape, device=stack[0].device) for stack in self._stacks]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._rest.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        for other in self._rest.param_groups:
            other["lr"] = group["lr"]
        self._rest.step()
        for stack, momentum in zip(self._stacks, self._momenta, strict=True):
            gradient = torch.stack([p.grad if p.grad is not None else torch.zeros_like(p) for p in stack])
            momentum.lerp_(gradient, 1 - group["momentum"])
            ahead = gradient.lerp_(momentum, group["momentum"])  # Nesterov's
            scale = 0.2 * sqrt(max(ahead.shape[1:]))
            torch._foreach_mul_(stack, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(stack, list(orthogonalized(ahead).unbind()), alpha=-group["lr"] * scale)


def orthogonalized(matrices: Tensor) -> Tensor:
    """(n, a, b): each matrix with its singular values made about 1, by Newton and Schulz's iteration in bf16."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x: Tensor = (matrices if wide else matrices.mT).bfloat16()
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    first, second, third = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = first * x + (second * square + third * square @ square) @ x
    return (x if wide else x.mT).to(matrices.dtype)
