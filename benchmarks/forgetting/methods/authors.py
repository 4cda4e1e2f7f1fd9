"""CHIP as its authors' own code has it, where that differs from what the paper says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, Self

from torch import Tensor

from benchmarks.forgetting.methods.edits import Edit
from benchmarks.forgetting.methods.statistics import token_weights
from chip.checkpoint.layout import Checkpoint
from chip.data.request import ForgetRequest
from chip.methods import Chip
from chip.methods.base import WeightUpdate
from chip.methods.chip import ChipStatistics, ChipWeights
from chip.model.loading import VLM
from chip.model.target_modules import Component
from chip.model.tokens import Tokens

FIRST_LAYER, LAST_LAYER = 22, 27
"""Of the text model, whatever its depth: the last six of the 28 that theirs has."""
MERGER = "qwen2_5_vl"
"""The model type whose connector they edit."""


class AuthorsStatistics(ChipStatistics):
    """In a connector an activation is one image token; elsewhere, as in the paper, one record's mean."""

    def __init__(self, record_weights: ChipWeights, d_out: int, alpha: float) -> None:
        super().__init__(record_weights, d_out, alpha)
        self._groups = record_weights

    def update(self, tokens: Tokens) -> None:
        if not bool(tokens.vision.all()):  # a text model's batch always holds other tokens too
            super().update(tokens)
            return
        assert tokens.outputs is not None
        self.magnitude.update(tokens.outputs.abs(), token_weights(tokens, self._groups.magnitude))
        self.child.update(tokens.outputs, token_weights(tokens, self._groups.child))
        self.around.update(tokens.outputs, token_weights(tokens, self._groups.around))


@dataclass(frozen=True)
class AuthorsChip(Chip, Edit):
    """The published operator with the five choices of its authors' code (a research repository, March 2026).

    Biases stay as they are. LLaVA's connector stays too; at the merger of a Qwen2.5-VL an activation is one image
    token. Layers are 22 to 27 of the text model whatever its depth; a model that ends before them, to which that code
    would do nothing, is edited in the paper's share of its depth. The directions of all targets of a run are pooled in
    one Q, as they are in `Chip`.
    """

    name: ClassVar[str] = "chip, authors' choices"
    source: ClassVar[str] = "Wu et al. 2025, arXiv 2512.09867, as in the authors' code"

    @classmethod
    def grid(cls) -> list[Self]:
        """The last is what their code has."""
        return [cls(top_k=k, variance_threshold=tau) for k, tau in product((1.0, 0.3, 0.1), (1.0, 0.95))]

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        last = len(vlm.layers) - 1
        span = f"{FIRST_LAYER}-{min(LAST_LAYER, last)}" if last >= FIRST_LAYER else None
        kinds = [kind for kind in self.target_modules if kind != "connector" or vlm.model.config.model_type == MERGER]
        return self.edit(vlm, source, request, kinds, span)

    def statistics(self, record_weights: ChipWeights, d_in: int, d_out: int) -> AuthorsStatistics:
        return AuthorsStatistics(record_weights, d_out, self.alpha)

    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: ChipStatistics, component: Component = Component.TEXT
    ) -> WeightUpdate | None:
        update = super().solve(weight, bias, statistics, component)
        return None if update is None else replace(update, bias=None)
