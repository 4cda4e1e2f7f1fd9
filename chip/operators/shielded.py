"""The default operator: what the target brings is sent where its siblings' goes; what is retained stays where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from chip.kernels.gram import mirror_
from chip.kernels.solve import solve_spd_
from chip.moments import KeyedMoment, SecondMoment, Tokens
from chip.operators.base import Case, Operator, Update, membership
from chip.processes import Processes

_GROUPS = 3
"""Forget, siblings, rest."""


@dataclass(frozen=True)
class ShieldedGroups:
    """Which record counts for what. Columns: forget, siblings, rest; each target; what is near each target."""

    of_text: Tensor
    """(records, 3 + 2 targets) fp32, 1 or 0."""
    of_image: Tensor
    """The same for image tokens: those of a target that a retained record shows too (a section shares its study's
    image) are left out of forget and target, since they are not the target's alone."""
    pictures: float
    """How many pictures the targets have, shared ones by share."""

    @classmethod
    def of(cls, case: Case, device: torch.device) -> ShieldedGroups:
        split, targets = case.split, case.split.targets
        columns = (
            *(split.forget, split.siblings, split.rest),
            *(split.forget_of[target] for target in targets),
            *(split.siblings_of[target] or split.retained for target in targets),
        )
        of_text = membership(len(case.hierarchy.records), columns, device)
        of_image = of_text.clone()
        of_image[_shares_image(case).to(device)] = 0
        return cls(of_text, of_image, _pictures(case))

    @property
    def targets(self) -> int:
        return (self.of_text.shape[1] - _GROUPS) // 2


class ShieldedStatistics:
    """Second moments of a site's inputs for target, siblings and rest, and what siblings show in a target's place.

    A target token is sent to the mean of the siblings' tokens with its key: the same word, the same place in the image.
    So the difference holds what is the target's, and not that words and places differ.
    """

    def __init__(self, groups: ShieldedGroups, d_in: int) -> None:
        self._groups, device = groups, groups.of_text.device
        self.second = [SecondMoment(d_in, device) for _ in range(_GROUPS)]
        self.target = [KeyedMoment(d_in, device) for _ in range(groups.targets)]
        self.near = [KeyedMoment(d_in, device) for _ in range(groups.targets)]

    @property
    def pictures(self) -> float:
        return self._groups.pictures

    def update(self, tokens: Tokens) -> None:
        of_text, of_image = (tokens.owners.total(each) for each in (self._groups.of_text, self._groups.of_image))
        weights = torch.where(tokens.vision[:, None], of_image[tokens.segments], of_text[tokens.segments])
        of_group = iter(weights.unbind(1))
        for second in self.second:
            chosen, weight = _counted(next(of_group))
            second.update(tokens.inputs[chosen], weight)
        for keyed in (*self.target, *self.near):
            chosen, weight = _counted(next(of_group))
            keyed.update(tokens.inputs[chosen], tokens.keys[chosen], weight)

    def merge(self, processes: Processes) -> None:
        for second in self.second:
            second.merge(processes)
        for keyed in (*self.target, *self.near):
            keyed.merge(processes)


@dataclass(frozen=True)
class Shielded(Operator):
    """Ridge regression of the target's outputs onto its siblings', shielded by what is retained:

        min over W'   √m E_f ‖W'x − W μ_s(x)‖²  +  β E_r ‖W'x − Wx‖²  +  λ ‖W' − W‖²
        W' = W − √m W B K⁻¹,   B = E_f[(x − μ_s(x)) xᵀ],   K = √m E_f[x xᵀ] + β C_r + λ I,
        C_r = γ C_siblings + (1 − γ) C_rest

    μ_s(x) is the mean of the siblings' tokens that stand where x stands; x − μ_s is the sibling-differential direction
    of CHIP (Wu et al., arXiv 2512.09867, section 4), on the input side. m is the number of the targets' pictures (a
    section has a part of one): each has but 1/m of E_f, so that without a weight an institution would be forgotten far
    less than a study, and a section more than its share. With m itself as the weight siblings would pay.
    """

    name: ClassVar[str] = "shielded"
    data_order: ClassVar[bool] = True
    sites: ClassVar[tuple[str, ...]] = ("connector", "down")
    layers: ClassVar[tuple[float, float]] = (0.0, 0.75)

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"shield": (0, inf), "ridge": (1e-9, inf), "near": (0, 1)}

    shield: float = 8.0
    """β: higher keeps more and forgets less."""
    ridge: float = 0.35
    """λ, as a share of the mean diagonal of C_r: higher makes smaller changes, which survive quantisation."""
    near: float = 0.35
    """γ: the siblings' share of the shield, however few they are."""

    def groups(self, case: Case, device: torch.device) -> ShieldedGroups:
        return ShieldedGroups.of(case, device)

    def statistics(self, groups: ShieldedGroups, d_in: int, d_out: int) -> ShieldedStatistics:
        return ShieldedStatistics(groups, d_in)

    def update(self, weight: Tensor, bias: Tensor | None, statistics: ShieldedStatistics) -> Update | None:
        forget, siblings, rest = statistics.second
        if forget.count == 0:
            return None
        wide, urgency = weight.to(forget.half.dtype), sqrt(statistics.pictures) / forget.count
        near = self.near if siblings.count and rest.count else float(siblings.count > 0)
        system = urgency * forget.half
        mean_diagonal = torch.zeros_like(forget.count)
        for moment, share in ((siblings, near), (rest, 1 - near)):
            if share:
                system.add_(moment.half, alpha=float(self.shield * share / moment.count))
                mean_diagonal += share * moment.half.diagonal().mean() / moment.count
        system.diagonal().add_(self.ridge * mean_diagonal)
        moved = wide @ mirror_(forget.half)  # (d_out, d_in): W E_f[(x − μ_s(x)) xᵀ] without a third large matrix
        for target, around in zip(statistics.target, statistics.near, strict=True):
            moved -= (wide @ around.mean_at(target.keys).T) @ target.total
        return Update(wide - solve_spd_(urgency * moved, system), None)


def _counted(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Where tokens count at all, and how often."""
    chosen = weight.nonzero()[:, 0]
    return chosen, weight[chosen]


def _pictures(case: Case) -> float:
    """How many pictures the targets have; one that others show too counts by the targets' share of its records.

    Text-only records count as one picture for each node.
    """
    pictures = [record.path if record.image is None else record.image for record in case.hierarchy.records]
    everyone, targets = Counter(pictures), Counter(pictures[i] for i in case.split.forget)
    return sum(count / everyone[picture] for picture, count in targets.items())


def _shares_image(case: Case) -> Tensor:
    """(records,) bool: a target's record whose image a retained record shows as well."""
    records, split = case.hierarchy.records, case.split
    retained = {records[i].image for i in split.retained}
    forgotten = set(split.forget)
    return torch.tensor([i in forgotten and record.image in retained for i, record in enumerate(records)])
