"""The default operator: what the target brings is sent where its siblings' goes; what is retained stays where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from chip.kernels.solve import solve_spd
from chip.moments import FirstMoment, SecondMoment, Tokens
from chip.operators.base import Case, Operator, Update

_FORGET, _SIBLINGS, _REST = range(3)


class ShieldedStatistics:
    """Second moments of a site's inputs for target, siblings and rest; means by target and modality.

    Image and text tokens lie far apart, so the mean a target token is sent to is taken among siblings' tokens of its
    own modality. Image tokens of a target that a retained record shows too (a section shares its study's image) hold
    nothing that could be forgotten without them, and are left out of the target's.
    """

    def __init__(self, case: Case, d_in: int, device: torch.device) -> None:
        split, count = case.split, len(case.hierarchy.records)
        self._group = torch.full((count,), _REST, device=device)
        self._group[list(split.siblings)] = _SIBLINGS
        self._group[list(split.forget)] = _FORGET
        self._of_target = torch.zeros(count, len(split.targets), dtype=torch.bool, device=device)
        self._near_target = self._of_target.clone()
        for column, target in enumerate(split.targets):
            self._of_target[list(split.forget_of[target]), column] = True
            near = split.siblings_of[target] or (*split.siblings, *split.rest)
            self._near_target[list(near), column] = True
        self._image_is_shared = _shares_image(case).to(device)
        self.second = [SecondMoment(d_in, device) for _ in range(3)]
        self.target = FirstMoment(2 * len(split.targets), d_in, device)
        self.near = FirstMoment(2 * len(split.targets), d_in, device)

    def update(self, tokens: Tokens) -> None:
        group = self._group[tokens.records]
        counted = ~(tokens.vision & self._image_is_shared[tokens.records])
        for index, second in enumerate(self.second):
            chosen = (group == index) & counted if index == _FORGET else group == index
            second.update(tokens.inputs[chosen])
        for first, membership in ((self.target, self._of_target), (self.near, self._near_target)):
            member = membership[tokens.records]
            chosen = member.any(1) & (counted | (group != _FORGET))
            by_modality = torch.cat((member & ~tokens.vision[:, None], member & tokens.vision[:, None]), 1)
            first.update(tokens.inputs[chosen], by_modality[chosen])

    def __iadd__(self, other: ShieldedStatistics) -> ShieldedStatistics:
        for mine, theirs in zip(self.second, other.second, strict=True):
            mine += theirs
        self.target += other.target
        self.near += other.near
        return self


@dataclass(frozen=True)
class Shielded(Operator):
    """Ridge regression of the target's outputs onto its siblings', shielded by what is retained:

        min over W'   E_f ‖W'x − W μ_s‖²  +  β E_r ‖W'x − Wx‖²  +  λ ‖W' − W‖²
        W' = W − W B K⁻¹,   B = E_f[(x − μ_s) xᵀ],   K = E_f[x xᵀ] + β C_r + λ I,   C_r = γ C_siblings + (1 − γ) C_rest

    x − μ_s is the sibling-differential direction of CHIP (Wu et al., arXiv 2512.09867, section 4), on the input side.
    """

    name: ClassVar[str] = "shielded"
    data_order: ClassVar[bool] = True
    sites: ClassVar[tuple[str, ...]] = ("connector", "down")
    layers: ClassVar[tuple[float, float]] = (0.0, 1.0)

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"shield": (0, inf), "ridge": (1e-9, inf), "near": (0, 1)}

    shield: float = 10.0
    """β: higher keeps more and forgets less."""
    ridge: float = 0.1
    """λ, as a share of the mean diagonal of C_r: higher makes smaller changes, which survive quantisation."""
    near: float = 0.5
    """γ: the siblings' share of the shield, however few they are."""

    def statistics(self, case: Case, d_in: int, d_out: int, device: torch.device) -> ShieldedStatistics:
        return ShieldedStatistics(case, d_in, device)

    def update(self, weight: Tensor, bias: Tensor | None, statistics: ShieldedStatistics) -> Update | None:
        forget, siblings, rest = statistics.second
        if forget.count == 0:
            return None
        near = self.near if siblings.count and rest.count else float(siblings.count > 0)
        retained = near * siblings.mean + (1 - near) * rest.mean  # (d_in, d_in)
        centred = forget.outer - statistics.near.mean.T @ statistics.target.total  # Σ (x − μ_s) xᵀ
        system = forget.mean + self.shield * retained
        system.diagonal().add_(self.ridge * retained.diagonal().mean())
        wide = weight.to(system.dtype)
        return Update(wide - solve_spd(wide @ (centred / forget.count), system), None)


def _shares_image(case: Case) -> Tensor:
    """(records,) bool: a target's record whose image a retained record shows as well."""
    records, split = case.hierarchy.records, case.split
    retained = {records[i].image for i in (*split.siblings, *split.rest)}
    shared = torch.zeros(len(records), dtype=torch.bool)
    for i in split.forget:
        shared[i] = records[i].image in retained
    return shared
