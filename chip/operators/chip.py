"""The published operator, CHIP (Wu et al., arXiv 2512.09867): a few directions leave the outputs of a few neurons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from chip.hierarchy import Node
from chip.kernels.subspace import leading_basis, project_out
from chip.moments import FirstMoment, Tokens
from chip.operators.base import Case, Operator, Removed, Update, membership


class ChipStatistics:
    """Means over records of a site's pooled output a, for the node sets that the directions compare.

    A record's a = α · mean over image tokens + (1 − α) · mean over other tokens; where it has only one of the two kinds
    (a connector site, a text-only record), the mean over that.
    """

    def __init__(self, case: Case, d_out: int, alpha: float, device: torch.device) -> None:
        split, count = case.split, len(case.hierarchy.records)
        self._alpha = alpha
        pairs = [pair for target in split.targets for pair in _comparisons(case, target)]
        self._magnitude_of = membership(count, [split.forget, (*split.siblings, *split.rest)], device)
        self._child_of = membership(count, [child for child, _ in pairs], device)
        self._around_of = membership(count, [around for _, around in pairs], device)
        self.magnitude = FirstMoment(2, d_out, device)
        self.child = FirstMoment(len(pairs), d_out, device)
        self.around = FirstMoment(len(pairs), d_out, device)

    def update(self, tokens: Tokens) -> None:
        records, row = torch.unique(tokens.records, return_inverse=True)
        pooled = self._pool(tokens, row, len(records))  # (records, d_out)
        self.magnitude.update(pooled.abs(), self._magnitude_of[records])
        self.child.update(pooled, self._child_of[records])
        self.around.update(pooled, self._around_of[records])

    def _pool(self, tokens: Tokens, row: Tensor, count: int) -> Tensor:
        modality = torch.where(tokens.vision, 0, 1)
        sums = FirstMoment(2 * count, tokens.outputs.shape[1], tokens.outputs.device)
        sums.count.index_add_(0, 2 * row + modality, torch.ones_like(row, dtype=sums.count.dtype))
        sums.total.index_add_(0, 2 * row + modality, tokens.outputs.to(sums.total.dtype))
        means = rearrange(sums.mean, "(record modality) d -> record modality d", modality=2)
        weight = rearrange(sums.count, "(record modality) -> record modality", modality=2).clamp(max=1)  # 0: missing
        weight = weight * weight.new_tensor([self._alpha, 1 - self._alpha])
        share = weight / weight.sum(1, keepdim=True)
        return torch.einsum("rmd,rm->rd", means, share)

    def __iadd__(self, other: ChipStatistics) -> ChipStatistics:
        self.magnitude += other.magnitude
        self.child += other.child
        self.around += other.around
        return self


@dataclass(frozen=True)
class Chip(Operator):
    """W_S ← (I − Q Qᵀ) W_S and b_S ← (I − Q Qᵀ) b_S (arXiv 2512.09867, section 4).

    S: the rows with the largest E_forget|a| − E_retain|a|. Q: the leading right singular vectors of the target's
    sibling-differential directions d_c = normalize(mean a of child c − mean a of its siblings), on S.
    """

    name: ClassVar[str] = "chip"
    data_order: ClassVar[bool] = False
    sites: ClassVar[tuple[str, ...]] = ("connector", "gate", "up", "down")
    layers: ClassVar[tuple[float, float]] = (22 / 28, 1.0)

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"top_k": (0, 1), "energy": (0, 1), "alpha": (0, 1)}

    top_k: float = 0.1
    """k: the share of a site's output rows that is edited."""
    energy: float = 0.95
    """τ: the share of the directions' squared singular values that is projected out."""
    alpha: float = 0.3
    """α: the weight of image tokens in a record's activation."""

    def statistics(self, case: Case, d_in: int, d_out: int, device: torch.device) -> ChipStatistics:
        return ChipStatistics(case, d_out, self.alpha, device)

    def update(self, weight: Tensor, bias: Tensor | None, statistics: ChipStatistics) -> Update | None:
        forget, retain = statistics.magnitude.mean
        rows = (forget - retain).topk(max(1, round(self.top_k * len(forget)))).indices.sort().values
        directions = (statistics.child.mean - statistics.around.mean)[:, rows]  # (m, |S|)
        lengths = torch.linalg.norm(directions, dim=1, keepdim=True)
        basis = leading_basis(directions / lengths.clamp(min=torch.finfo(lengths.dtype).tiny), self.energy)
        if basis.shape[1] == 0:
            return None
        return Update(
            _project_rows(weight, rows, basis),
            None if bias is None else _project_rows(bias, rows, basis),
            Removed(rows, basis),
        )


def _project_rows(parameter: Tensor, rows: Tensor, basis: Tensor) -> Tensor:
    """(I − Q Qᵀ) on these rows, in the dtype of `basis`; all other rows as they are."""
    wide = parameter.to(basis.dtype)
    wide[rows] = project_out(wide[rows], basis)
    return wide


def _comparisons(case: Case, target: Node) -> Iterator[tuple[list[int], list[int]]]:
    """For each child of the target (itself, if it has none): its records, and those of its retained siblings.

    Siblings are the retained nodes of the child's level under the target's parent; where there are none, all retained
    nodes of that level.
    """
    hierarchy, forgotten = case.hierarchy, set(case.split.forget)
    for child in hierarchy.children(target) or (target,):
        level = [node for node in hierarchy.nodes if node.level == child.level]
        family = [node for node in level if target.parent is None or target.parent.contains(node.path)]
        for around in (family, level):
            retained = [i for node in around for i in hierarchy.records_of(node) if i not in forgotten]
            if retained:
                yield hierarchy.records_of(child), retained
                break
