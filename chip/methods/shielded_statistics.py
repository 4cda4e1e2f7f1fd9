"""What the default method collects of each module: second moments of its inputs, and means of what is retained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from chip.data.request import ForgetRequest, matched_records
from chip.distributed import DistributedContext
from chip.methods.base import membership
from chip.methods.statistics import CrossMoment, FirstMoment, GroupedMean, SecondMoment
from chip.model.tokens import TokenRole, Tokens

FORGET, RETAINED, SHIELD, GENERAL = range(4)
"""Columns of `ShieldedWeights.of_records`."""
MASSIVE = 20.0
"""A token whose input is so many times longer than the median of its batch is an attention sink, whatever it stands for
(massive activations: Sun et al. 2024, arXiv 2402.17762)."""
KINDS = 2
"""Of tokens that are matched with each other: text, and image."""


@dataclass(frozen=True)
class ShieldedWeights:
    """How much each record counts in each sum."""

    of_records: Tensor
    """(records, roles, 4) fp32: how often a token of a record's role counts: as forgotten, as retained, in C_r, in C_g.

    Of a target whose image a sibling or somebody else shows too (a section shares its study's) the image is not
    forgotten, and of no target the prefix: they are not the target's alone. Where only records about a node above the
    target show it too, such as a question of the institution about a patient's picture, the image is the target's: it
    is forgotten, and those records do not hold it. In C_r a record has an even part of the shares of the groups that it
    is in, elsewhere 1 or 0.
    """
    target_images: float
    """m: how many images the targets have, shared ones by share."""
    general: bool
    """Whether there is any general text."""

    @classmethod
    def of(cls, request: ForgetRequest, neighbor_weight: float, device: torch.device) -> ShieldedWeights:
        """`neighbor_weight`: as `Shielded` has it."""
        partition = request.partition
        general = range(len(request.hierarchy.records), len(request.records))
        of_records = membership(request, (partition.forget, partition.retained, (), general), device)
        for indices, share in _shares(request, neighbor_weight):
            of_records[indices, SHIELD] += share / len(indices)
        of_records = of_records[:, None].repeat(1, len(TokenRole), 1)
        of_records[:, TokenRole.PREFIX, FORGET] = 0
        of_records[list(partition.on_shared_images), TokenRole.IMAGE, FORGET] = 0
        of_records[list(partition.ancestors), TokenRole.IMAGE] = 0
        return cls(of_records, _target_images(request), bool(request.general))


class ShieldedStatistics:
    """Second moments of a module's inputs, and what the retained show in a target's place.

    Where maps before it in the connector are edited, inputs are what then comes in; what the retained show, and are to
    keep, is what came in before.

    A target token is sent past the mean of the retained tokens with its match key: the same word, or the same place in
    the image. So the difference holds what is the target's, and not that words and places differ.

    The image, the question and the answer of a record count alike, however many tokens they have: an answer of one word
    would otherwise be lost among hundreds of image tokens.

    The first token of a sequence, and any other that a pretrained model uses as an attention sink, belongs to nobody:
    it is not forgotten and in no mean, and where it is massive not in the scale of λ either, which it alone would
    decide. It is protected like all that is retained.
    """

    def __init__(self, record_weights: ShieldedWeights, d_in: int) -> None:
        self._weights, device = record_weights, record_weights.of_records.device
        self.forget, self.shield = SecondMoment(d_in, device), SecondMoment(d_in, device)
        self.forget_means, self.retained_means = GroupedMean(d_in, device, KINDS), GroupedMean(d_in, device, KINDS)
        self.general = SecondMoment(d_in, device) if record_weights.general else None
        self.ordinary = FirstMoment(1, 1, device)
        """‖x‖² of what `shield` counts, sinks apart."""
        self.drifts: tuple[CrossMoment, CrossMoment] | None = None
        """Of the tokens that `forget` and `shield` count; None while what comes in is what came in before."""

    @property
    def target_images(self) -> float:
        return self._weights.target_images

    def update(self, tokens: Tokens) -> None:
        weights = tokens.weights(self._weights.of_records)  # (n, 4)
        massive = _massive(tokens.inputs, tokens.starts)
        weights[:, [FORGET, RETAINED]] *= ~(tokens.starts | massive)[:, None]
        keys = KINDS * tokens.ids + tokens.vision  # the same word, or the same place in the image
        forgotten = weights[:, FORGET].nonzero()[:, 0]
        x_forget, weight = tokens.inputs[forgotten], weights[forgotten, FORGET]
        self.forget.update(x_forget, weight)
        self.forget_means.update(x_forget, keys[forgotten], weight)

        retained = (weights[:, RETAINED] + weights[:, SHIELD]).nonzero()[:, 0]
        x_retained, share = tokens.inputs[retained], weights[retained, SHIELD]
        original = x_retained if tokens.original_inputs is None else tokens.original_inputs[retained]
        self.shield.update(x_retained, share)
        self.ordinary.update(
            x_retained.to(self.ordinary.total.dtype).square().sum(1, keepdim=True),
            (share * ~massive[retained])[:, None],
        )
        matched = retained[weights[retained, RETAINED] > 0]  # not the sinks
        original_matched = original if len(matched) == len(retained) else original[weights[retained, RETAINED] > 0]
        self.retained_means.update(original_matched, keys[matched], weights[matched, RETAINED])

        if self.general is not None:
            texts = weights[:, GENERAL].nonzero()[:, 0]
            shrunk = weights[texts, GENERAL] * _shrinking(tokens.inputs[texts], massive[texts])
            self.general.update(tokens.inputs[texts], shrunk)

        if tokens.original_inputs is not None:
            of_forget, of_shield = self._drifts()
            of_forget.update(x_forget, tokens.original_inputs[forgotten], weight)
            of_shield.update(x_retained, original, share)

    def merge(self, distributed: DistributedContext) -> None:
        drifted = torch.tensor(float(self.drifts is not None))
        distributed.all_reduce_(drifted)  # a process that had no images has not seen it
        moments = (self.forget, self.shield, self.ordinary, self.forget_means, self.retained_means)
        optional = () if self.general is None else (self.general,)
        for moment in (*moments, *optional, *(self._drifts() if drifted else ())):
            moment.merge(distributed)

    def _drifts(self) -> tuple[CrossMoment, CrossMoment]:
        if self.drifts is None:
            like = self.shield.total
            self.drifts = CrossMoment(like.width, like.device), CrossMoment(like.width, like.device)
        return self.drifts


def _shrinking(x: Tensor, massive: Tensor) -> Tensor:
    """(n,): 1, and for `massive` tokens what makes them as long as the median one of x (n, d).

    What matters of a token is the error of its output in relation to its length, since a norm follows; a trust region
    that goes by all outputs together would go by the sinks alone, and let everything else change.
    """
    squares = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(1)
    return torch.where(massive, squares.median() / squares, 1.0) if len(x) else squares


def _massive(x: Tensor, starts: Tensor) -> Tensor:
    """(n,) bool: tokens whose input (n, d) is `MASSIVE` times longer than the median one, or where `starts` a fifth of
    that."""
    lengths = torch.linalg.vector_norm(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)
    median = lengths.median() if len(lengths) else 1.0
    massive: Tensor = lengths > torch.where(starts, MASSIVE / 5, MASSIVE) * median
    return massive


def _shares(request: ForgetRequest, neighbor_weight: float) -> list[tuple[list[int], float]]:
    """Trained records, and their share of C_r: the siblings, the matched ones, and all that are retained.

    What there is none of leaves its share to the others, and if need be to all that are retained.
    """
    records, partition = request.hierarchy.records, request.partition
    groups = (
        (partition.siblings, neighbor_weight),
        (matched_records(request), neighbor_weight),
        (sorted(partition.retained), 1 - 2 * neighbor_weight),
    )
    trained = [([i for i in indices if not records[i].held_out], share) for indices, share in groups]
    present = [(indices, share) for indices, share in trained if indices and share]
    return present or [(indices, 1.0) for indices, _ in trained[-1:] if indices]


def _target_images(request: ForgetRequest) -> float:
    """How many images the targets have; one that others show too counts by the targets' share of its records.

    Records above a target do not count as others. Text-only records count as one image for each node.
    """
    shown = [record.images or (record.path,) for record in request.hierarchy.records]
    above = set(request.partition.ancestors)
    everyone = Counter(image for i, images in enumerate(shown) if i not in above for image in images)
    targets = Counter(image for i in request.partition.forget for image in shown[i])
    return sum(count / everyone[image] for image, count in targets.items())
