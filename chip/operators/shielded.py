"""The default operator: what the target brings is sent where everyone's goes; what is retained stays where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from chip.answers import normalised, stated
from chip.kernels.gram import mirror_
from chip.kernels.solve import solve_spd_
from chip.moments import KeyedMoment, Part, SecondMoment, Tokens
from chip.operators.base import Case, Operator, Update, membership
from chip.processes import Processes
from chip.records import Record

AUTO: Literal["auto"] = "auto"
FORGET, SIBLINGS, ALIKE, REST = range(4)
RETAINED = (SIBLINGS, ALIKE, REST)


@dataclass(frozen=True)
class ShieldedGroups:
    """Which record counts for what."""

    of_records: Tensor
    """(records, parts, 4) fp32, 1 or 0: whether a record's part counts for forget, siblings, alike and rest.

    Alike is what is asked or said of others as it is of a target: the same question, or the same answer. Of a target
    whose image a retained record shows too (a section shares its study's) the image is left out of forget, and of every
    target the beginning: they are not the target's alone.
    """
    pictures: float
    """How many pictures the targets have, shared ones by share."""

    @classmethod
    def of(cls, case: Case, device: torch.device) -> ShieldedGroups:
        split, alike = case.split, _alike(case)
        rest = sorted({*split.rest} - {*alike})
        groups = membership(len(case.hierarchy.records), (split.forget, split.siblings, alike, rest), device)
        of_records = groups[:, None].repeat(1, len(Part), 1)
        of_records[:, Part.BEGINNING, FORGET] = 0
        of_records[_shares_image(case).to(device), Part.IMAGE, FORGET] = 0
        return cls(of_records, _pictures(case))


class ShieldedStatistics:
    """Second moments of a site's inputs, group by group, and what the retained show in a target's place.

    A target token is sent to the mean of the retained tokens with its key: the same word, the same place in the image.
    So the difference holds what is the target's, and not that words and places differ.

    The image, the question and the answer of a record count alike, however many tokens they have: an answer of one word
    would else be lost among hundreds of image tokens.
    """

    def __init__(self, groups: ShieldedGroups, d_in: int) -> None:
        self._groups, device = groups, groups.of_records.device
        self.second = tuple(SecondMoment(d_in, device) for _ in (FORGET, *RETAINED))
        """Of forget, siblings, alike, and rest."""
        self.target, self.retained = KeyedMoment(d_in, device), KeyedMoment(d_in, device)

    @property
    def pictures(self) -> float:
        return self._groups.pictures

    def update(self, tokens: Tokens) -> None:
        weights = tokens.weights(self._groups.of_records)
        for second, of_group in zip(self.second, weights.unbind(1), strict=True):
            chosen, weight = _counted(of_group)
            second.update(tokens.inputs[chosen], weight)
        for keyed, of_group in ((self.target, weights[:, FORGET]), (self.retained, weights[:, RETAINED].sum(1))):
            chosen, weight = _counted(of_group)
            keyed.update(tokens.inputs[chosen], tokens.keys[chosen], weight)

    def merge(self, processes: Processes) -> None:
        for second in self.second:
            second.merge(processes)
        for keyed in (self.target, self.retained):
            keyed.merge(processes)


@dataclass(frozen=True)
class Shielded(Operator):
    """Ridge regression of the target's outputs onto everyone's, shielded by what is retained:

        min over W'   √m E_f ‖W'x − W μ(x)‖²  +  β E_r ‖W'x − Wx‖²  +  λ ‖W' − W‖²
        W' = W − √m W B K⁻¹,   B = E_f[(x − μ(x)) xᵀ],   K = √m E_f[x xᵀ] + β C_r + λ I,
        C_r = γ C_siblings + γ C_alike + (1 − 2γ) C_rest

    μ(x) is the mean of the retained tokens that stand where x stands; x − μ is the differential direction of CHIP (Wu
    et al., arXiv 2512.09867, section 4), on the input side, and against all that is retained: the mean of a few
    siblings is an input like theirs, which a model takes for the nearest one it knows, often the target itself.

    What is to go is where two things meet: this target, and that about it. So both neighbours have a share of the
    shield of their own, however few they are: the siblings, of whom the same is not asked or said, and those alike, of
    whom it is.

    m is the number of the targets' pictures (a section has a part of one): each has but 1/m of E_f, so that without a
    weight an institution would be forgotten far less than a study, and a section more than its share. With m itself as
    the weight siblings would pay.

    Every site is measured in the model as it was, and is to remove the target by itself: what a changed image, a
    rounding or more training brings past one site, the next one still takes.
    """

    name: ClassVar[str] = "shielded"
    inputs_only: ClassVar[bool] = True
    sites: ClassVar[tuple[str, ...]] = ("connector", "down")
    layers: ClassVar[tuple[float, float]] = (0.0, 1.0)

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"shield": (0, inf), "ridge": (1e-9, inf), "near": (0, 0.5)}

    words: ClassVar[Mapping[str, tuple[str, ...]]] = {"shield": (AUTO,)}

    shield: float | Literal["auto"] = AUTO
    """β: higher keeps more and forgets less; `auto`: as `chip.choosing` finds it."""
    ridge: float = 0.05
    """λ, as a share of the mean diagonal of C_r: higher makes smaller changes, which survive quantisation."""
    near: float = 0.3
    """γ: the siblings' share of the shield, and as much for those alike; what a group is without goes to the others."""

    def groups(self, case: Case, device: torch.device) -> ShieldedGroups:
        return ShieldedGroups.of(case, device)

    def statistics(self, groups: ShieldedGroups, d_in: int, d_out: int) -> ShieldedStatistics:
        return ShieldedStatistics(groups, d_in)

    def update(self, weight: Tensor, bias: Tensor | None, statistics: ShieldedStatistics) -> Update | None:
        if isinstance(self.shield, str):
            raise ValueError("the shield is still to be chosen")
        forget, shares = statistics.second[FORGET], self._shares(statistics)
        if forget.count == 0 or not shares:
            return None  # nothing to take out, or nowhere to send it
        wide, urgency = weight.to(forget.half.dtype), sqrt(statistics.pictures) / forget.count
        system = urgency * forget.half
        mean_diagonal = torch.zeros_like(forget.count)
        for moment, share in shares:
            system.add_(moment.half, alpha=float(self.shield * share / moment.count))
            mean_diagonal += share * moment.half.diagonal().mean() / moment.count
        system.diagonal().add_(self.ridge * mean_diagonal)
        moved = wide @ mirror_(forget.half)  # (d_out, d_in): W E_f[(x − μ(x)) xᵀ] without a third large matrix
        moved -= (wide @ statistics.retained.mean_at(statistics.target.keys).T) @ statistics.target.total
        return Update(wide - solve_spd_(urgency * moved, system), None)

    def _shares(self, statistics: ShieldedStatistics) -> list[tuple[SecondMoment, float]]:
        """Of each retained group that has tokens, its share of the shield; together 1.

        Where only such groups have any as were to have no share, these have it all.
        """
        wanted = {SIBLINGS: self.near, ALIKE: self.near, REST: 1 - 2 * self.near}
        there = {group: share for group, share in wanted.items() if statistics.second[group].count}
        found = {group: share for group, share in there.items() if share} or dict.fromkeys(there, 1.0)
        whole = sum(found.values())
        return [(statistics.second[group], share / whole) for group, share in found.items()]


def _counted(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Where tokens count at all, and how often."""
    chosen = weight.nonzero()[:, 0]
    return chosen, weight[chosen]


def _alike(case: Case) -> list[int]:
    """Of the rest, the records that ask what a target's record asks, or say what it says."""
    records, split = case.hierarchy.records, case.split
    asked, said = ({of(records[i]) for i in split.forget} for of in (_asked, stated))
    return [i for i in split.rest if _asked(records[i]) in asked or stated(records[i]) in said]


def _asked(record: Record) -> str:
    return normalised(record.question)


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
