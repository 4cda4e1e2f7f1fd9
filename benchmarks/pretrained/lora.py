"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), trained beside frozen linear layers and merged into them.

A few lines in the place of PEFT, which the machines that run the benchmarks do not all have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraLinear(nn.Module):
    """y = base(x) + (α / r) B A x; B is zero at first, so that nothing has changed yet."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        like = base.weight
        self.down = nn.Parameter(torch.empty(rank, base.in_features, device=like.device, dtype=like.dtype))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=like.device, dtype=like.dtype))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        result: Tensor = self.base(x) + self.scale * adapted
        return result

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer, with (α / r) B A added to its weight."""
        self.base.weight += self.scale * self.up @ self.down
        return self.base


def add_lora(model: Any, rank: int, alpha: float, names: Iterable[str] = PROJECTIONS) -> list[LoraLinear]:
    """Put an adapter in the place of each linear layer of these names; the adapters, in the order of the layers."""
    wanted, adapters = set(names), []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in wanted and isinstance(child, nn.Linear):
                adapter = LoraLinear(child, rank, alpha)
                setattr(module, name, adapter)
                adapters.append(adapter)
    return adapters


def merge_lora(model: Any) -> None:
    """Put the merged layer in the place of each adapter."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                setattr(module, name, child.merged())
