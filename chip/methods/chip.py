"""The published operator, CHIP (Wu et al., arXiv 2512.09867): a few directions leave the outputs of a few neurons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from chip.data.hierarchy import Node
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.kernels.subspace import leading_basis, project_rows_
from chip.methods.base import Method, Removed, WeightUpdate, membership
from chip.methods.settings import setting
from chip.methods.statistics import FirstMoment
from chip.model.target_modules import Component
from chip.model.tokens import Tokens


@dataclass(frozen=True)
class ChipWeights:
    """Which record counts for which mean; each (records, groups) fp32, 1 or 0."""

    magnitude: Tensor
    """Of what is forgotten, and of what is retained."""
    child: Tensor
    """Of each child of a target."""
    around: Tensor
    """Of what each child is compared with."""


class ChipStatistics:
    """Means over records of a module's pooled output a, for the node sets that the directions compare.

    A record's a = α · mean over image tokens + (1 − α) · mean over other tokens; where it has only one of the two kinds
    (in a connector, a text-only record), the mean over that.
    """

    def __init__(self, record_weights: ChipWeights, d_out: int, alpha: float) -> None:
        self._weights, self._alpha, device = record_weights, alpha, record_weights.magnitude.device
        self.magnitude = FirstMoment(2, d_out, device)
        self.child = FirstMoment(record_weights.child.shape[1], d_out, device)
        self.around = FirstMoment(record_weights.around.shape[1], d_out, device)

    def update(self, tokens: Tokens) -> None:
        records, row = torch.unique(tokens.owners.records, return_inverse=True)
        pooled = self._pool(tokens, row, len(records))  # (records, d_out)
        self.magnitude.update(pooled.abs(), self._weights.magnitude[records])
        self.child.update(pooled, self._weights.child[records])
        self.around.update(pooled, self._weights.around[records])

    def _pool(self, tokens: Tokens, row: Tensor, count: int) -> Tensor:
        """Each record's a: (count, d_out). `row`: of each owner, its place among the records."""
        assert tokens.outputs is not None
        segments, modality = tokens.owners.count, torch.where(tokens.vision, 0, 1)
        sums = FirstMoment(2 * segments, tokens.outputs.shape[1], tokens.outputs.device)
        place = 2 * tokens.segments + modality
        sums.count.index_add_(0, place, torch.ones_like(place, dtype=sums.count.dtype))
        sums.total.index_add_(0, place, tokens.outputs.to(sums.total.dtype))
        owned = tokens.owners.segments
        totals, counts = (rearrange(each, "(s m) ... -> s m ...", m=2)[owned] for each in (sums.total, sums.count))
        total = totals.new_zeros(count, *totals.shape[1:]).index_add_(0, row, totals)  # (records, 2, d_out)
        number = counts.new_zeros(count, 2).index_add_(0, row, counts)
        weight = number.clamp(max=1) * number.new_tensor([self._alpha, 1 - self._alpha])  # 0: it has none of the kind
        share = weight / weight.sum(1, keepdim=True)
        return torch.einsum("rmd,rm->rd", total, share / number.clamp(min=1))

    def merge(self, distributed: DistributedContext) -> None:
        for moment in (self.magnitude, self.child, self.around):
            moment.merge(distributed)


@dataclass(frozen=True)
class Chip(Method):
    """W_S ← (I − Q Qᵀ) W_S and b_S ← (I − Q Qᵀ) b_S (arXiv 2512.09867, section 4).

    S: the rows with the largest E_forget|a| − E_retain|a|. Q: the leading right singular vectors of the target's
    sibling-differential directions d_c = normalize(mean a of child c − mean a of its siblings), on S.
    """

    name: ClassVar[str] = "chip"
    version: ClassVar[int] = 1
    target_modules: ClassVar[tuple[str, ...]] = ("connector", "gate", "up", "down")
    layers: ClassVar[tuple[float, float]] = (22 / 28, 1.0)

    top_k: float = setting(0.1, "k: share of a module's output rows that is edited.", maximum=1)
    variance_threshold: float = setting(
        0.95, "τ: share of the directions' squared singular values that is projected out.", maximum=1
    )
    alpha: float = setting(0.3, "α: weight of image tokens in a record's activation.", maximum=1)

    def record_weights(self, request: ForgetRequest, device: torch.device) -> ChipWeights:
        partition = request.partition
        pairs = [pair for target in partition.targets for pair in _comparisons(request, target)]
        return ChipWeights(
            membership(request, [partition.forget, partition.retained], device),
            membership(request, [child for child, _ in pairs], device),
            membership(request, [around for _, around in pairs], device),
        )

    def statistics(self, record_weights: ChipWeights, d_in: int, d_out: int) -> ChipStatistics:
        return ChipStatistics(record_weights, d_out, self.alpha)

    def statistics_bytes(self, d_in: int, d_out: int) -> int:
        return 0  # a few vectors

    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: ChipStatistics, component: Component = Component.TEXT
    ) -> WeightUpdate | None:
        forget, retain = statistics.magnitude.mean
        rows = (forget - retain).topk(max(1, round(self.top_k * len(forget)))).indices.sort().values
        directions = (statistics.child.mean - statistics.around.mean)[:, rows]  # (m, |S|)
        lengths = torch.linalg.norm(directions, dim=1, keepdim=True)
        basis = leading_basis(directions / lengths.clamp(min=torch.finfo(lengths.dtype).tiny), self.variance_threshold)
        if basis.shape[1] == 0:
            return None
        return WeightUpdate(
            _projected(weight, rows, basis),
            None if bias is None else _projected(bias, rows, basis),
            Removed(rows, basis),
        )


def _projected(parameter: Tensor, rows: Tensor, basis: Tensor) -> Tensor:
    """(I − Q Qᵀ) on these rows, in the dtype of `basis`; all other rows as they are."""
    wide = parameter.to(basis.dtype, copy=True)
    project_rows_(wide, rows, basis)
    return wide


def _comparisons(request: ForgetRequest, target: Node) -> Iterator[tuple[list[int], list[int]]]:
    """For each child of the target (itself, if it has none): its records, and those of its retained siblings.

    Siblings are the retained nodes of the child's level under the target's parent; where there are none, all retained
    nodes of that level.
    """
    hierarchy, forgotten = request.hierarchy, set(request.partition.forget)
    for child in hierarchy.children(target) or (target,):
        level = [node for node in hierarchy.nodes if node.level == child.level]
        family = [node for node in level if target.parent is None or target.parent.contains(node.path)]
        for around in (family, level):
            retained = [i for node in around for i in hierarchy.records_of(node) if i not in forgotten]
            if retained:
                yield hierarchy.records_of(child), retained
                break
