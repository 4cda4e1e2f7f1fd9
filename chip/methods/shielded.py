"""The default operator: what the target brings is sent where everyone's goes; what is retained stays where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from chip.data.answers import canonical_answer, normalized_question
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.kernels.gram import symmetrize_
from chip.kernels.solve import solve_spd_
from chip.methods.base import Method, Update, membership
from chip.methods.statistics import CrossMoment, GroupedMean, SecondMoment
from chip.model.tokens import TokenRole, Tokens

AUTO: Literal["auto"] = "auto"
FORGET, RETAINED, SHIELD = range(3)
CONNECTOR_RETAIN_SCALE = 1 / 4
"""The connector's part of β: all that an image shows comes through it, and what its first map takes from those who stay
the second gives back, so that it can remove more, at a smaller cost, than the layers behind it."""
OVERSHOOT = 1 / 2
"""How far past the mean a target token is sent, as a part of its way there: in directions that the retained use too the
shield lets it go but part of the way, and this makes up for it in the others."""


@dataclass(frozen=True)
class ShieldedWeights:
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
    def of(cls, request: ForgetRequest, neighbor_weight: float, device: torch.device) -> ShieldedWeights:
        """`near`: as `Shielded` has it."""
        count, partition = len(request.hierarchy.records), request.partition
        of_records = membership(count, (partition.forget, partition.retained, ()), device)
        for indices, share in _shares(request, neighbor_weight):
            of_records[indices, SHIELD] += share / len(indices)
        of_records = of_records[:, None].repeat(1, len(TokenRole), 1)
        of_records[:, TokenRole.PREFIX, FORGET] = 0
        of_records[_shares_image(request).to(device), TokenRole.IMAGE, FORGET] = 0
        return cls(of_records, _pictures(request))


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

    def __init__(self, groups: ShieldedWeights, d_in: int) -> None:
        self._groups, device = groups, groups.of_records.device
        self.forget, self.retain_weight = SecondMoment(d_in, device), SecondMoment(d_in, device)
        self.target, self.retained = GroupedMean(d_in, device), GroupedMean(d_in, device)
        self.drifts: tuple[CrossMoment, CrossMoment] | None = None
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
        self.retain_weight.update(kept, share)
        self.retained.update(before, tokens.keys[others], weights[others, RETAINED])

        if tokens.before is not None:
            of_forget, of_shield = self._drifted()
            of_forget.update(x, tokens.before[mine], weight)
            of_shield.update(kept, before, share)

    def merge(self, distributed: DistributedContext) -> None:
        drifted = torch.tensor(float(self.drifts is not None))
        distributed.all_reduce_(drifted)  # one that had no images has not seen it
        for moment in (
            self.forget,
            self.retain_weight,
            self.target,
            self.retained,
            *(self._drifted() if drifted else ()),
        ):
            moment.merge(distributed)

    def _drifted(self) -> tuple[CrossMoment, CrossMoment]:
        if self.drifts is None:
            half = self.retain_weight.upper
            self.drifts = CrossMoment(len(half), half.device), CrossMoment(len(half), half.device)
        return self.drifts


@dataclass(frozen=True)
class Shielded(Method):
    """Ridge regression of the target's outputs onto everyone's, shielded by what is retained:

        min over W'   √m E_f ‖W'x − W t(x)‖²  +  β E_r ‖W'x − Wx‖²  +  λ ‖W' − W‖²
        W' = W − √m W B K⁻¹,   B = E_f[(x − t(x)) xᵀ],   K = √m E_f[x xᵀ] + β C_r + λ I,
        t(x) = μ(x) − ½ (x − μ(x)),   C_r = γ C_siblings + γ C_alike + (1 − 2γ) C_retained

    μ(x) is the mean of the retained tokens that stand where x stands; x − μ is the differential direction of CHIP (Wu
    et al., arXiv 2512.09867, section 4), on the input side, and against all that is retained: the mean of a few
    siblings is an input like theirs, which a model takes for the nearest one it knows, often the target itself. The
    target goes past μ(x), by half the way to it (`OVERSHOOT`).

    What is to go is where two things meet: this target, and that about it. So both neighbors have a share of their
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
    compose_connector: ClassVar[bool] = True
    target_modules: ClassVar[tuple[str, ...]] = ("connector", "down")
    layers: ClassVar[tuple[float, float]] = (0.0, 1.0)

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "retain_weight": (0, inf),
        "ridge": (1e-9, inf),
        "neighbor_weight": (0, 0.5),
    }

    words: ClassVar[Mapping[str, tuple[str, ...]]] = {"retain_weight": (AUTO,)}

    retain_weight: float | Literal["auto"] = AUTO
    """β: higher keeps more and forgets less (in the connector: `CONNECTOR_RETAIN_SCALE` of
    it); `auto`: found by `chip.methods.search`."""
    ridge: float = 0.1
    """λ, as a share of the mean diagonal of C_r: higher makes smaller changes, which survive quantization."""
    neighbor_weight: float = 0.3
    """γ: the siblings' own share of the shield, and as much for those alike; 0: all that are retained count evenly."""

    def at(self, kind: str) -> Self:
        if kind != "connector" or isinstance(self.retain_weight, str):
            return self
        return replace(self, retain_weight=self.retain_weight * CONNECTOR_RETAIN_SCALE)

    def groups(self, request: ForgetRequest, device: torch.device) -> ShieldedWeights:
        return ShieldedWeights.of(request, self.neighbor_weight, device)

    def statistics(self, groups: ShieldedWeights, d_in: int, d_out: int) -> ShieldedStatistics:
        return ShieldedStatistics(groups, d_in)

    def update(self, weight: Tensor, bias: Tensor | None, statistics: ShieldedStatistics) -> Update | None:
        if isinstance(self.retain_weight, str):
            raise ValueError("the shield is still to be chosen")
        forget, retain_weight = statistics.forget, statistics.retain_weight
        if forget.count == 0 or retain_weight.count == 0:
            return None  # nothing to take out, or nowhere to send it
        wide, urgency = weight.to(forget.upper.dtype), sqrt(statistics.pictures) / forget.count
        ridge = self.ridge * retain_weight.upper.diagonal().mean() / retain_weight.count
        system = urgency * forget.upper
        system.add_(retain_weight.upper, alpha=float(self.retain_weight / retain_weight.count)).diagonal().add_(ridge)
        moved = wide @ symmetrize_(forget.upper)  # (d_out, d_in): W E_f[(x − μ(x)) xᵀ] without a third large matrix
        moved -= (wide @ statistics.retained.mean_at(statistics.target.keys).T) @ statistics.target.total
        moved *= (1 + OVERSHOOT) * urgency
        if statistics.drifts is not None:
            of_forget, of_shield = statistics.drifts
            moved -= OVERSHOOT * urgency * (wide @ of_forget.total)
            moved += float(self.retain_weight / retain_weight.count) * (wide @ of_shield.total)
        return Update(wide - solve_spd_(moved, system), None)


def _shares(request: ForgetRequest, neighbor_weight: float) -> list[tuple[list[int], float]]:
    """Trained records, and their share of the shield: the siblings, those alike, and all that are retained.

    What there is none of leaves its share to the others, and if need be to all that are retained.
    """
    records, partition = request.hierarchy.records, request.partition
    groups = (
        (partition.siblings, neighbor_weight),
        (_alike(request), neighbor_weight),
        (sorted(partition.retained), 1 - 2 * neighbor_weight),
    )
    trained = [([i for i in indices if not records[i].held_out], share) for indices, share in groups]
    there = [(indices, share) for indices, share in trained if indices and share]
    return there or [(indices, 1.0) for indices, _ in trained[-1:] if indices]


def _alike(request: ForgetRequest) -> list[int]:
    """Of the rest, the records that ask what a target's record asks, or say what it says."""
    records, partition = request.hierarchy.records, request.partition
    questions, answers = ({of(records[i]) for i in partition.forget} for of in (normalized_question, canonical_answer))

    def matches(record: Record) -> bool:
        return normalized_question(record) in questions or canonical_answer(record) in answers

    return [i for i in partition.retain_other if matches(records[i])]


def _pictures(request: ForgetRequest) -> float:
    """How many pictures the targets have; one that others show too counts by the targets' share of its records.

    Text-only records count as one picture for each node.
    """
    pictures = [record.path if record.image is None else record.image for record in request.hierarchy.records]
    everyone, targets = Counter(pictures), Counter(pictures[i] for i in request.partition.forget)
    return sum(count / everyone[picture] for picture, count in targets.items())


def _shares_image(request: ForgetRequest) -> Tensor:
    """(records,) bool: a target's record whose image a retained record shows as well."""
    records, partition = request.hierarchy.records, request.partition
    retained = {records[i].image for i in partition.retained} - {None}
    forgotten = set(partition.forget)
    return torch.tensor([i in forgotten and record.image in retained for i, record in enumerate(records)])
