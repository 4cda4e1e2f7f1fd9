"""The default operator: what the target brings is sent where everyone's goes; what is retained stays where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from chip.kernels.gram import mirror_
from chip.kernels.solve import solve_spd_
from chip.moments import KeyedMoment, SecondMoment, Tokens
from chip.operators.base import Case, Operator, Update, membership
from chip.processes import Processes

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class ShieldedGroups:
    """Which record counts for what. Columns: forget, siblings, rest."""

    answering: Tensor
    """(records, 3) fp32, 1 or 0: for the tokens that an answer is said from."""
    given: Tensor
    """The same for image and question. Of a target whose image a retained record shows too (a section shares its
    study's) they are left out of forget: image and beginning are not the target's alone."""
    pictures: float
    """How many pictures the targets have, shared ones by share."""

    @classmethod
    def of(cls, case: Case, device: torch.device) -> ShieldedGroups:
        split = case.split
        answering = membership(len(case.hierarchy.records), (split.forget, split.siblings, split.rest), device)
        given = answering.clone()
        given[_shares_image(case).to(device)] = 0
        return cls(answering, given, _pictures(case))


class ShieldedStatistics:
    """Second moments of a site's inputs for target, siblings and rest, and what the retained show in a target's place.

    A target token is sent to the mean of the retained tokens with its key: the same word, the same place in the image.
    So the difference holds what is the target's, and not that words and places differ.
    """

    def __init__(self, groups: ShieldedGroups, d_in: int) -> None:
        self._groups, device = groups, groups.answering.device
        self.forget, self.siblings, self.rest = (SecondMoment(d_in, device) for _ in range(3))
        self.target, self.retained = KeyedMoment(d_in, device), KeyedMoment(d_in, device)

    @property
    def pictures(self) -> float:
        return self._groups.pictures

    def update(self, tokens: Tokens) -> None:
        answering, given = (tokens.owners.total(each) for each in (self._groups.answering, self._groups.given))
        weights = torch.where(tokens.answering[:, None], answering[tokens.segments], given[tokens.segments])
        forget, siblings, rest = weights.unbind(1)
        for second, of_group in ((self.forget, forget), (self.siblings, siblings), (self.rest, rest)):
            chosen, weight = _counted(of_group)
            second.update(tokens.inputs[chosen], weight)
        for keyed, of_group in ((self.target, forget), (self.retained, siblings + rest)):
            chosen, weight = _counted(of_group)
            keyed.update(tokens.inputs[chosen], tokens.keys[chosen], weight)

    def merge(self, processes: Processes) -> None:
        for moment in (self.forget, self.siblings, self.rest, self.target, self.retained):
            moment.merge(processes)


@dataclass(frozen=True)
class Shielded(Operator):
    """Ridge regression of the target's outputs onto everyone's, shielded by what is retained:

        min over W'   √m E_f ‖W'x − W μ(x)‖²  +  β E_r ‖W'x − Wx‖²  +  λ ‖W' − W‖²
        W' = W − √m W B K⁻¹,   B = E_f[(x − μ(x)) xᵀ],   K = √m E_f[x xᵀ] + β C_r + λ I,
        C_r = γ C_siblings + (1 − γ) C_rest

    μ(x) is the mean of the retained tokens that stand where x stands; x − μ is the differential direction of CHIP (Wu
    et al., arXiv 2512.09867, section 4), on the input side, and against all that is retained: the mean of a few
    siblings is an input like theirs, which a model takes for the nearest one it knows, often the target itself. m is
    the number of the targets' pictures (a section has a part of one): each has but 1/m of E_f, so that without a weight
    an institution would be forgotten far less than a study, and a section more than its share. With m itself as the
    weight siblings would pay.

    Every site is measured in the model as it was, and is to remove the target by itself: what a changed image, a
    rounding or more training brings past one site, the next one still takes.
    """

    name: ClassVar[str] = "shielded"
    inputs_only: ClassVar[bool] = True
    sites: ClassVar[tuple[str, ...]] = ("connector", "down")
    layers: ClassVar[tuple[float, float]] = (0.0, 0.75)

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"shield": (0, inf), "ridge": (1e-9, inf), "near": (0, 1)}

    words: ClassVar[Mapping[str, tuple[str, ...]]] = {"shield": (AUTO,)}

    shield: float | Literal["auto"] = AUTO
    """β: higher keeps more and forgets less; `auto`: as `chip.choosing` finds it."""
    ridge: float = 0.05
    """λ, as a share of the mean diagonal of C_r: higher makes smaller changes, which survive quantisation."""
    near: float = 0.35
    """γ: the siblings' share of the shield, however few they are."""

    def groups(self, case: Case, device: torch.device) -> ShieldedGroups:
        return ShieldedGroups.of(case, device)

    def statistics(self, groups: ShieldedGroups, d_in: int, d_out: int) -> ShieldedStatistics:
        return ShieldedStatistics(groups, d_in)

    def update(self, weight: Tensor, bias: Tensor | None, statistics: ShieldedStatistics) -> Update | None:
        if isinstance(self.shield, str):
            raise ValueError("the shield is still to be chosen")
        forget, siblings, rest = statistics.forget, statistics.siblings, statistics.rest
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
        moved = wide @ mirror_(forget.half)  # (d_out, d_in): W E_f[(x − μ(x)) xᵀ] without a third large matrix
        moved -= (wide @ statistics.retained.mean_at(statistics.target.keys).T) @ statistics.target.total
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
    retained = {records[i].image for i in split.retained} - {None}
    forgotten = set(split.forget)
    return torch.tensor([i in forgotten and record.image in retained for i, record in enumerate(records)])
