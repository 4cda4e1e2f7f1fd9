"""Nullu: the directions in which what is forgotten differs from its like leave a layer's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.forgetting.methods.edits import Edit
from benchmarks.forgetting.methods.statistics import RecordMeans
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.kernels.subspace import leading_basis, project_out
from chip.methods.base import WeightUpdate
from chip.methods.settings import setting
from chip.model.target_modules import Component
from chip.model.tokens import Tokens


@dataclass(frozen=True)
class NulluWeights:
    """Whom each forgotten record is compared with."""

    forget: Tensor
    """(f,) int64: the forgotten records that have somebody to be compared with."""
    around: Tensor
    """(f, records) fp32, rows that sum to one."""


@dataclass(frozen=True)
class Nullu(Edit):
    """W′ = (I − V Vᵀ) W for `down_proj` of the upper half of the layers; V (d_out, k): the leading right singular
    vectors of the matrix of differences, a row for each forgotten record.

    An adaptation, from hallucinations to a target: a row there is the difference between a hallucinated and a truthful
    answer about one image, of hidden states averaged over tokens. Here the truthful one is replaced by the mean of the
    siblings' records that ask the same question (all retained that ask it, where no sibling does), and the hidden
    states are the edited matrix's own outputs.
    """

    name: ClassVar[str] = "nullu"
    source: ClassVar[str] = "Yang et al. 2025, arXiv 2412.13817, figure 2"
    target_modules: ClassVar[tuple[str, ...]] = ("down",)
    layers: ClassVar[tuple[float, float]] = (0.5, 1.0)

    rank: int = setting(4, "k: how many directions each layer loses.", minimum=1)

    @classmethod
    def grid(cls) -> list[Self]:
        return [*(cls(rank=rank, span="all") for rank in (48, 32, 24, 16, 8)), cls()]

    def record_weights(self, request: ForgetRequest, device: torch.device) -> NulluWeights:
        records, partition = request.hierarchy.records, request.partition
        by_question: dict[str, list[int]] = {}
        for i in partition.retained:
            if not records[i].held_out:
                by_question.setdefault(records[i].question, []).append(i)
        siblings = {target: set(partition.siblings_of[target]) for target in partition.targets}
        pairs = [
            (i, _near(by_question[records[i].question], siblings[target]))
            for target in partition.targets
            for i in partition.forget_of[target]
            if not records[i].held_out and records[i].question in by_question
        ]
        around = torch.zeros(len(pairs), len(records))
        for row, (_, others) in enumerate(pairs):
            around[row, others] = 1 / len(others)
        return NulluWeights(torch.tensor([i for i, _ in pairs], dtype=torch.int64).to(device), around.to(device))

    def statistics(self, record_weights: NulluWeights, d_in: int, d_out: int) -> NulluStatistics:
        return NulluStatistics(record_weights, d_out)

    def statistics_bytes(self, d_in: int, d_out: int) -> int:
        return 0  # a vector of d_out for each record

    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: NulluStatistics, component: Component = Component.TEXT
    ) -> WeightUpdate | None:
        basis = leading_basis(statistics.differences, 1.0)[:, : self.rank]
        if basis.shape[1] == 0:
            return None
        wide = project_out(weight.to(basis.dtype), basis)
        return WeightUpdate(wide, None if bias is None else project_out(bias.to(basis.dtype)[:, None], basis)[:, 0])


class NulluStatistics:
    """Differences between what a forgotten record and its like show, one row a record."""

    def __init__(self, record_weights: NulluWeights, d_out: int) -> None:
        self._weights, around = record_weights, record_weights.around
        self._records = RecordMeans(around.shape[1], d_out, around.device)

    def update(self, tokens: Tokens) -> None:
        self._records.update(tokens)

    def merge(self, distributed: DistributedContext) -> None:
        self._records.merge(distributed)

    @property
    def differences(self) -> Tensor:
        """(f, d_out)."""
        mean = self._records.mean
        return mean[self._weights.forget] - self._weights.around.to(mean.dtype) @ mean


def _near(records: list[int], siblings: set[int]) -> list[int]:
    """Those that are siblings, or all where none is."""
    return [i for i in records if i in siblings] or records
