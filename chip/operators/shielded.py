"""The default operator: what the target brings is sent where everyone's goes; what is retained stays where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from chip.answers import normalised, stated
from chip.kernels.gram import mirror_
from chip.kernels.solve import solve_spd_
from chip.moments import DriftMoment, KeyedMoment, Part, SecondMoment, Tokens
from chip.operators.base import Case, Operator, Update, membership
from chip.processes import Processes
from chip.records import Record

AUTO: Literal["auto"] = "auto"
FORGET, RETAINED, SHIELD = range(3)
CONNECTOR = 1 / 4
"""The connector's part of β: all that an image shows comes through it, and what its first map takes from those who stay
the second gives back, so that it can remove more, at a smaller cost, than the layers behind it."""
BEYOND = 1 / 2
"""How far past the mean a target token is sent, as a part of its way there: in directions that the retained use too the
shield lets it go but part of the way, and this makes up for it in the others."""


@dataclass(frozen=True)
class ShieldedGroups:
    """Which record counts for what."""

    of_records: Tensor
    """(records, parts, 3) fp32: how often a record's part counts for forget, retained and shield.

    Of a target whose image a retained record shows too (a section shares its study's) the image is left out of forget,
    and of every target the beginning: they are not the target's alone. For the shield a record has an even part of the
    shares of the groups that it is in, for the others 1 or 0.
    """
    pictures: float
    """How many pictures the targets have, shared ones by share."""

    @classmethod
    def of(cls, case: Case, near: float, device: torch.device) -> ShieldedGroups:
        """`near`: as `Shielded` has it."""
        count, split = len(case.hierarchy.records), case.split
        of_records = membership(count, (split.forget, split.retained, ()), device)
        for indices, share in _shares(case, near):
            of_records[indices, SHIELD] += share / len(indices)
        of_records = of_records[:, None].repeat(1, len(Part), 1)
        of_records[:, Part.BEGINNING, FORGET] = 0
        of_records[_shares_image(case).to(device), Part.IMAGE, FORGET] = 0
        return cls(of_records, _pictures(case))


class ShieldedStatistics:
    """Second moments of a site's inputs, and what the retained show in a target's place.

    Where maps before it in the connector are edited, inputs are what then comes in; what the retained show, and are to
    keep, is what came in before.

    A target token is sent past the mean of the retained tokens with its key: the same word, the same place in the
    image. So the difference holds what is the target's, and not that words and places differ.

    The image, the question and the answer of a record count alike, however many tokens they have: an answer of one word
    would else be lost among hundreds of image tokens.
    """

    MOMENTS: ClassVar[int] = 2
    """How many second moments there are."""

    def __init__(self, groups: ShieldedGroups, d_in: int) -> None:
        self._groups, device = groups, groups.of_records.device
        self.forget, self.shield = SecondMoment(d_in, device), SecondMoment(d_in, device)
        self.target, self.retained = KeyedMoment(d_in, device), KeyedMoment(d_in, device)
        self.drifts: tuple[DriftMoment, DriftMoment] | None = None
        """Of what `forget` and `shield` count; None while what comes in is what came in before."""

    @property
    def pictures(self) -> float:
        return self._groups.pictures

    def update(self, tokens: Tokens) -> None:
        weights = tokens.weights(self._groups.of_records)
        mine = weights[:, FORGET].nonzero()[:, 0]
        x, weight = tokens.inputs[mine], weights[mine, FORGET]
        self.forget.update(x, weight)
        self.target.update(x, tokens.keys[mine], weight)

        others = weights[:, RETAINED].nonzero()[:, 0]  # all that the shield counts are among them
        kept, share = tokens.inputs[others], weights[others, SHIELD]
        before = kept if tokens.before is None else tokens.before[others]
        self.shield.update(kept, share)
        self.retained.update(before, tokens.keys[others], weights[others, RETAINED])

        if tokens.before is not None:
            of_forget, of_shield = self._drifted()
            of_forget.update(x, tokens.before[mine], weight)
            of_shield.update(kept, before, share)

    def merge(self, processes: Processes) -> None:
        drifted = torch.tensor(float(self.drifts is not None))
        processes.add_(drifted)  # one that had no images has not seen it
        for moment in (self.forget, self.shield, self.target, self.retained, *(self._drifted() if drifted else ())):
            moment.merge(processes)

    def _drifted(self) -> tuple[DriftMoment, DriftMoment]:
        if self.drifts is None:
            half = self.shield.half
            self.drifts = DriftMoment(len(half), half.device), DriftMoment(len(half), half.device)
        return self.drifts


@dataclass(frozen=True)
class Shielded(Operator):
    """Ridge regression of the target's outputs onto everyone's, shielded by what is retained:

        min over W'   √m E_f ‖W'x − W t(x)‖²  +  β E_r ‖W'x − Wx‖²  +  λ ‖W' − W‖²
        W' = W − √m W B K⁻¹,   B = E_f[(x − t(x)) xᵀ],   K = √m E_f[x xᵀ] + β C_r + λ I,
        t(x) = μ(x) − ½ (x − μ(x)),   C_r = γ C_siblings + γ C_alike + (1 − 2γ) C_retained

    μ(x) is the mean of the retained tokens that stand where x stands; x − μ is the differential direction of CHIP (Wu
    et al., arXiv 2512.09867, section 4), on the input side, and against all that is retained: the mean of a few
    siblings is an input like theirs, which a model takes for the nearest one it knows, often the target itself. The
    target goes past μ(x), by half the way to it (`BEYOND`).

    What is to go is where two things meet: this target, and that about it. So both neighbours have a share of their
    own beside that of all that are retained, however few they are: the siblings, of whom the same is not asked or said,
    and those alike, of whom it is.

    m is the number of the targets' pictures (a section has a part of one): each has but 1/m of E_f, so that without a
    weight an institution would be forgotten far less than a study, and a section more than its share. With m itself as
    the weight siblings would pay.

    Every layer is measured in the model as it was, and is to remove the target by itself: what a changed image, a
    rounding or more training brings past one site, the next one still takes.

    A connector is one function of an image, through which all must pass. Each of its maps is measured behind those
    before it as they are to be, and is to give what it gave: with x₀ what came in before, μ is of x₀, and E_r ‖W'x −
    Wx₀‖² in the place of E_r ‖W'x − Wx‖² adds β E_r[(x − x₀) xᵀ] to √m B. So it takes on what the one before it has
    left of the target, and mends what that has taken from the others.
    """

    name: ClassVar[str] = "shielded"
    inputs_only: ClassVar[bool] = True
    mends: ClassVar[bool] = True
    sites: ClassVar[tuple[str, ...]] = ("connector", "down")
    layers: ClassVar[tuple[float, float]] = (0.0, 1.0)

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"shield": (0, inf), "ridge": (1e-9, inf), "near": (0, 0.5)}

    words: ClassVar[Mapping[str, tuple[str, ...]]] = {"shield": (AUTO,)}

    shield: float | Literal["auto"] = AUTO
    """β: higher keeps more and forgets less (in the connector: `CONNECTOR` of it); `auto`: found by `chip.choosing`."""
    ridge: float = 0.1
    """λ, as a share of the mean diagonal of C_r: higher makes smaller changes, which survive quantisation."""
    near: float = 0.3
    """γ: the siblings' own share of the shield, and as much for those alike; 0: all that are retained count evenly."""

    def at(self, kind: str) -> Self:
        if kind != "connector" or isinstance(self.shield, str):
            return self
        return replace(self, shield=self.shield * CONNECTOR)

    def groups(self, case: Case, device: torch.device) -> ShieldedGroups:
        return ShieldedGroups.of(case, self.near, device)

    def statistics(self, groups: ShieldedGroups, d_in: int, d_out: int) -> ShieldedStatistics:
        return ShieldedStatistics(groups, d_in)

    def update(self, weight: Tensor, bias: Tensor | None, statistics: ShieldedStatistics) -> Update | None:
        if isinstance(self.shield, str):
            raise ValueError("the shield is still to be chosen")
        forget, shield = statistics.forget, statistics.shield
        if forget.count == 0 or shield.count == 0:
            return None  # nothing to take out, or nowhere to send it
        wide, urgency = weight.to(forget.half.dtype), sqrt(statistics.pictures) / forget.count
        ridge = self.ridge * shield.half.diagonal().mean() / shield.count
        system = urgency * forget.half
        system.add_(shield.half, alpha=float(self.shield / shield.count)).diagonal().add_(ridge)
        moved = wide @ mirror_(forget.half)  # (d_out, d_in): W E_f[(x − μ(x)) xᵀ] without a third large matrix
        moved -= (wide @ statistics.retained.mean_at(statistics.target.keys).T) @ statistics.target.total
        moved *= (1 + BEYOND) * urgency
        if statistics.drifts is not None:
            of_forget, of_shield = statistics.drifts
            moved -= BEYOND * urgency * (wide @ of_forget.total)
            moved += float(self.shield / shield.count) * (wide @ of_shield.total)
        return Update(wide - solve_spd_(moved, system), None)


def _shares(case: Case, near: float) -> list[tuple[list[int], float]]:
    """Trained records, and their share of the shield: the siblings, those alike, and all that are retained.

    What there is none of leaves its share to the others, and if need be to all that are retained.
    """
    records, split = case.hierarchy.records, case.split
    groups = ((split.siblings, near), (_alike(case), near), (sorted(split.retained), 1 - 2 * near))
    trained = [([i for i in indices if not records[i].held_out], share) for indices, share in groups]
    there = [(indices, share) for indices, share in trained if indices and share]
    return there or [(indices, 1.0) for indices, _ in trained[-1:] if indices]


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
