"""The default method as it was before it knew of attention sinks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from unittest.mock import patch

import torch

from chip.methods import Shielded, shielded_statistics
from chip.methods.shielded_statistics import ShieldedStatistics, ShieldedWeights
from chip.model.tokens import Tokens


class StatisticsWithSinks(ShieldedStatistics):
    """A sequence's first token, and massive ones, are forgotten, matched, and part of the scale of λ, as all others."""

    def update(self, tokens: Tokens) -> None:
        with patch.object(shielded_statistics, "MASSIVE", inf):  # no token is so long
            super().update(replace(tokens, starts=torch.zeros_like(tokens.starts)))


@dataclass(frozen=True)
class ShieldedWithSinks(Shielded):
    """The same solution, of statistics that sinks decide."""

    def statistics(self, record_weights: ShieldedWeights, d_in: int, d_out: int) -> StatisticsWithSinks:
        return StatisticsWithSinks(record_weights, d_in)
