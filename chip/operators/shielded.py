"""The default operator: what the target brings is sent where its siblings' goes; what is retained stays where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from chip.kernels.solve import solve_spd
from chip.moments import KeyedMoment, SecondMoment, Tokens
from chip.operators.base import Case, Operator, Update, membership

_FORGET, _SIBLINGS, _REST = range(3)


class ShieldedStatistics:
    """Second moments of a site's inputs for target, siblings and rest, and what siblings show in a target's place.

    A target token is sent to the mean of the siblings' tokens with its key: the same word, the same place in the image.
    So the difference holds what is the target's, and not that words and places differ. Image tokens of a target that
    a retained record shows too (a section shares its study's image) are left out: they are not the target's alone.
    """

    def __init__(self, case: Case, d_in: int, device: torch.device) -> None:
        split, count = case.split, len(case.hierarchy.records)
        self._group = torch.full((count,), _REST, device=device)
        self._group[list(split.siblings)] = _SIBLINGS
        self._group[list(split.forget)] = _FORGET
        retained = (*split.siblings, *split.rest)
        self._of_target = membership(count, [split.forget_of[target] for target in split.targets], device).T
        self._near_target = membership(
            count, [split.siblings_of[target] or retained for target in split.targets], device
        ).T
        self._image_is_shared = _shares_image(case).to(device)
        self.pictures = _pictures(case)
        self.second = [SecondMoment(d_in, device) for _ in range(3)]
        self.target = [KeyedMoment(d_in, device) for _ in split.targets]
        self.near = [KeyedMoment(d_in, device) for _ in split.targets]

    def update(self, tokens: Tokens) -> None:
        group = self._group[tokens.records]
        counted = (group != _FORGET) | ~(tokens.vision & self._image_is_shared[tokens.records])
        for index, second in enumerate(self.second):
            second.update(tokens.inputs[(group == index) & counted])
        for moments, masks in ((self.target, self._of_target), (self.near, self._near_target)):
            for moment, mask in zip(moments, masks, strict=True):
                chosen = mask[tokens.records] & counted
                moment.update(tokens.inputs[chosen], tokens.keys[chosen])

    def __iadd__(self, other: ShieldedStatistics) -> ShieldedStatistics:
        for name in ("second", "target", "near"):
            for mine, theirs in zip(getattr(self, name), getattr(other, name), strict=True):
                mine += theirs
        return self

    @property
    def forget_count(self) -> int:
        return self.second[_FORGET].count

    def difference(self) -> Tensor:
        """E_f[(x − μ_s(x)) xᵀ], (d_in, d_in)."""
        total = self.second[_FORGET].outer.clone()
        for target, near in zip(self.target, self.near, strict=True):
            total -= near.mean_at(target.keys).T @ target.total
        return total / self.forget_count


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

    def statistics(self, case: Case, d_in: int, d_out: int, device: torch.device) -> ShieldedStatistics:
        return ShieldedStatistics(case, d_in, device)

    def update(self, weight: Tensor, bias: Tensor | None, statistics: ShieldedStatistics) -> Update | None:
        forget, siblings, rest = statistics.second
        if statistics.forget_count == 0:
            return None
        near = self.near if siblings.count and rest.count else float(siblings.count > 0)
        retained = near * siblings.mean + (1 - near) * rest.mean  # (d_in, d_in)
        urgency = sqrt(statistics.pictures)
        system = urgency * forget.mean + self.shield * retained
        system.diagonal().add_(self.ridge * retained.diagonal().mean())
        wide = weight.to(system.dtype)
        return Update(wide - solve_spd(urgency * wide @ statistics.difference(), system), None)


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
    retained = {records[i].image for i in (*split.siblings, *split.rest)}
    shared = torch.zeros(len(records), dtype=torch.bool)
    for i in split.forget:
        shared[i] = records[i].image in retained
    return shared
