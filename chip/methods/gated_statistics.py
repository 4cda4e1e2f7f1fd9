"""What gated removal looks at in a connector: the target's image tokens one by one, all others as a distribution."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.errors import InputError
from chip.kernels.gram import accumulation_dtype
from chip.methods.gated_stand_ins import stand_in_images
from chip.methods.shielded_statistics import FORGET, RETAINED, ShieldedWeights
from chip.methods.statistics import FirstMoment, GroupedMean, SecondMoment
from chip.model.tokens import TokenRole, Tokens

PLACES = 2**32
"""A token's key is its image's number times this, and its place in the image."""

MOST_TOKENS = 2**14
"""Image tokens that a target may have, in all forms of its images: each is told from each."""
NEAREST = 16
"""Tokens of what is retained that are held for each direction and look."""


@dataclass(frozen=True)
class GatedWeights:
    """Which records show an image of the target's own, and which what is retained."""

    image: Tensor
    """(records,) int64: the number of the target's image that a record shows, altered ones last; else −1."""
    retained: Tensor
    """(records,) fp32, 1 or 0."""
    stand_in: Tensor
    """(records,) int64: the number of the stand-in that a record shows; else −1."""
    stand_in_of: Tensor
    """(images,) int64: the number of the stand-in of each of the target's images; −1 where nobody else has an image."""
    originals: int
    """How many of the target's images are not altered ones."""

    @classmethod
    def of(cls, request: ForgetRequest, views: int, device: torch.device) -> GatedWeights:
        """`views`: how many altered forms of each image stand behind the request's records, each in one of its own."""
        counts = ShieldedWeights.of(request, 0.0, torch.device("cpu")).of_records[:, TokenRole.IMAGE, RETAINED]
        forgotten = showing_own_images(request)
        images = own_images(request, forgotten)
        taken_for = stand_in_images(request, images)
        numbers = {image: number for number, image in enumerate(dict.fromkeys(taken_for.values()))}
        stand_in = [numbers.get(record.image, -1) if record.image is not None else -1 for record in request.records]
        altered = len(images) * views
        image = torch.full((len(request.records) + altered,), -1)
        for index in forgotten:
            image[index] = images.get(request.records[index].image, -1)
        image[len(request.records) :] = torch.arange(altered) + len(images)
        retained = torch.cat((counts > 0, torch.zeros(altered, dtype=torch.bool)))
        of_originals = torch.tensor([numbers[taken_for[image]] if taken_for else -1 for image in images])
        return cls(
            image.to(device),
            retained.float().to(device),
            torch.tensor(stand_in + [-1] * altered).to(device),
            of_originals.repeat(1 + views).to(device),
            len(images),
        )


def showing_own_images(request: ForgetRequest) -> list[int]:
    """The trained records with an image that is the target's alone."""
    counts = ShieldedWeights.of(request, 0.0, torch.device("cpu")).of_records[:, TokenRole.IMAGE, FORGET]
    records = request.records
    return [i for i in counts.nonzero()[:, 0].tolist() if records[i].image is not None and not records[i].held_out]


def own_images(request: ForgetRequest, forgotten: Sequence[int]) -> dict[Hashable, int]:
    """The images of these records, each with its number.

    Raises:
        InputError: one of them has several: which is which the places of their tokens do not say.
    """
    if several := next((r for r in map(request.records.__getitem__, forgotten) if r.more_images), None):
        message = f"takes one image a record, and {several.where} has {len(several.images)}; take shielded"
        raise InputError(message, argument="method", value="gated")
    images = (request.records[index].image for index in forgotten)
    return {image: number for number, image in enumerate(dict.fromkeys(images)) if image is not None}


class HeldTokens:
    """Inputs that are held as they are, each once, whatever order they come in."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.keys = torch.empty(0, dtype=torch.int64, device=device)
        """(n,) int64, ascending: image's number × `PLACES` + place."""
        self.inputs = torch.empty(0, width, dtype=accumulation_dtype(device), device=device)
        """(n, width)."""

    def update(self, x: Tensor, keys: Tensor) -> None:
        """Add the tokens x (n, width); of two with one key, which are the same token, the first stays."""
        keys, x = torch.cat((self.keys, keys)), torch.cat((self.inputs, x.to(self.inputs.dtype)))
        self.keys, row = torch.unique(keys, return_inverse=True)
        order = torch.arange(len(keys), device=keys.device)
        first = torch.full_like(self.keys, len(keys)).scatter_reduce_(0, row, order, "amin")
        self.inputs = x[first]

    def merge(self, distributed: DistributedContext) -> None:
        keys = distributed.union(self.keys)
        rows = torch.searchsorted(keys, self.keys)
        holders = torch.zeros(len(keys), dtype=self.inputs.dtype, device=keys.device).index_fill_(0, rows, 1)
        inputs = self.inputs.new_zeros(len(keys), self.inputs.shape[1]).index_copy_(0, rows, self.inputs)
        distributed.all_reduce_(holders, inputs)
        self.keys, self.inputs = keys, inputs / holders[:, None]

    @property
    def places(self) -> Tensor:
        """(n,) int64."""
        return self.keys % PLACES

    @property
    def images(self) -> Tensor:
        """(n,) int64."""
        return self.keys // PLACES


class GatedStatistics:
    """First look: moments of what is retained, and the target's tokens."""

    def __init__(self, record_weights: GatedWeights, d_in: int) -> None:
        self.record_weights, device = record_weights, record_weights.image.device
        self.target, self.stand_ins = HeldTokens(d_in, device), HeldTokens(d_in, device)
        self.retained, self._sum = SecondMoment(d_in, device), FirstMoment(1, d_in, device)
        self.retained_means = GroupedMean(d_in, device)
        """Of the retained at each place in an image."""

    def update(self, tokens: Tokens) -> None:
        image, retained = roles_of(tokens, self.record_weights)
        own, stand_in = image >= 0, image_numbers(tokens, self.record_weights.stand_in)
        self.target.update(tokens.inputs[own], image[own] * PLACES + tokens.ids[own])
        shown = retained & (stand_in >= 0)
        self.stand_ins.update(tokens.inputs[shown], stand_in[shown] * PLACES + tokens.ids[shown])
        if len(self.target.keys) > MOST_TOKENS:
            message = f"more than {MOST_TOKENS:,} image tokens of the target; give fewer --views, or forget fewer nodes"
            raise InputError(message, argument="method", value="gated")
        x, ones = tokens.inputs[retained], torch.ones_like(tokens.ids[retained], dtype=torch.float32)
        self.retained.update(x, ones)
        self._sum.update(x, ones[:, None])
        self.retained_means.update(x, tokens.ids[retained], ones)

    def merge(self, distributed: DistributedContext) -> None:
        for part in (self.target, self.stand_ins, self.retained, self._sum, self.retained_means):
            part.merge(distributed)
        if len(self.target.keys) > MOST_TOKENS:  # said here, in all processes at once
            message = f"more than {MOST_TOKENS:,} image tokens of the target; give fewer --views, or forget fewer nodes"
            raise InputError(message, argument="method", value="gated")

    @property
    def destinations(self) -> Tensor:
        """(n, d_in): the stand-in's token at the place of each of the target's; where it has none there, the mean of
        the retained at this place."""
        target, held = self.target, self.stand_ins
        means = self.retained_means.mean_at(target.places)
        if not len(held.keys):
            return means
        wanted = self.record_weights.stand_in_of[target.images] * PLACES + target.places
        row = torch.searchsorted(held.keys, wanted).clamp(max=len(held.keys) - 1)
        return torch.where((held.keys[row] == wanted)[:, None], held.inputs[row], means)

    @property
    def mean(self) -> Tensor:
        """(d_in,): of the retained."""
        return self._sum.mean[0]

    @property
    def covariance(self) -> Tensor:
        """(d_in, d_in): of the retained, about their mean; symmetric."""
        return self.moment[:-1, :-1] - self.mean[:, None] * self.mean

    @property
    def moment(self) -> Tensor:
        """(d_in + 1, d_in + 1): E[x̃ x̃ᵀ] of the retained, x̃ = x with a 1 behind it; symmetric."""
        second, mean = self.retained.mean.dense(), self.mean[:, None]
        return torch.cat((torch.cat((second, mean), 1), torch.cat((mean.T, mean.new_ones(1, 1)), 1)))


class NearestStatistics:
    """Later looks: of what is retained, the tokens that respond most along some directions."""

    def __init__(self, seen: Any, directions: Tensor, earlier: NearestStatistics | None = None) -> None:
        """`seen`: of the first look. `directions`: (c, d_in). `earlier`: the look before, whose tokens are among these
        too."""
        self.seen, self.directions = seen, directions
        self.looks: int = 1 if earlier is None else earlier.looks + 1
        self._held = directions.new_empty(0, directions.shape[1]) if earlier is None else earlier.pool
        self._found = self._held[:0]
        """(p, d_in): the tokens of this look, each once."""
        self._values = directions.new_empty(0, len(directions))
        """(k, c): the highest responses along each direction."""
        self._rows = torch.empty(0, len(directions), dtype=torch.int64, device=directions.device)
        """(k, c): the rows of `_found` that give them."""

    @property
    def pool(self) -> Tensor:
        """(p, d_in): the tokens of all looks, each once; in an order that does not depend on how they came in."""
        tokens: Tensor = torch.unique(torch.cat((self._held, self._found)), dim=0)
        return tokens

    def update(self, tokens: Tokens) -> None:
        retained = self._retained(tokens)
        if len(self.directions) and retained.any():
            x = tokens.inputs[retained].to(self._found.dtype)
            values = x @ self.directions.T
            rows = torch.arange(len(x), device=x.device)[:, None].expand_as(values)
            self._add(x, values, rows)

    def _retained(self, tokens: Tokens) -> Tensor:
        """(n,) bool."""
        _, retained = roles_of(tokens, self.seen.record_weights)
        return retained

    def _add(self, found: Tensor, values: Tensor, rows: Tensor) -> None:
        """Take notice of further tokens; arguments as the attributes of these names."""
        rows = torch.cat((self._rows, rows + len(self._found)))
        top = torch.cat((self._values, values)).topk(min(NEAREST, len(rows)), dim=0)
        used, rows = torch.unique(rows.gather(0, top.indices), return_inverse=True)
        self._found, self._values, self._rows = torch.cat((self._found, found))[used], top.values, rows

    def merge(self, distributed: DistributedContext) -> None:
        own = (self._found, self._values, self._rows)
        self._found, self._values, self._rows = (part[:0] for part in own)
        for rank in range(distributed.world_size):
            sizes = torch.tensor([len(part) if rank == distributed.rank else 0 for part in own])
            distributed.all_reduce_(sizes)
            parts = [
                part.clone() if rank == distributed.rank else part.new_zeros(size, part.shape[1])
                for part, size in zip(own, sizes.tolist(), strict=True)
            ]
            distributed.all_reduce_(*parts)
            self._add(*parts)


class HighestStatistics:
    """Last look: the highest response of what is retained along some directions."""

    def __init__(self, seen: GatedStatistics, directions: Tensor) -> None:
        """`directions`: (c, d_in)."""
        self.seen, self.directions = seen, directions
        self.highest = directions.new_full((len(directions),), -torch.inf)
        """(c,)"""

    def update(self, tokens: Tokens) -> None:
        _, retained = roles_of(tokens, self.seen.record_weights)
        if len(self.directions) and retained.any():
            responses = tokens.inputs[retained].to(self.directions.dtype) @ self.directions.T
            self.highest = torch.maximum(self.highest, responses.amax(0))

    def merge(self, distributed: DistributedContext) -> None:
        self.highest = distributed.greatest(self.highest)


def roles_of(tokens: Tokens, weights: GatedWeights) -> tuple[Tensor, Tensor]:
    """Of each token the number of the target's image that it is a piece of, else −1; and whether it is retained.

    What is both stands for what is retained.
    """
    image = image_numbers(tokens, weights.image)
    retained = tokens.owners.total(weights.retained)[tokens.segments] > 0
    return torch.where(retained, -1, image), retained


def image_numbers(tokens: Tokens, of_records: Tensor) -> Tensor:
    """(n,) int64: of each token the number that `of_records` (records,) gives to what shows it; else −1."""
    owners = tokens.owners
    numbers = torch.full((owners.count,), -1, dtype=torch.int64, device=tokens.ids.device)
    numbers.scatter_reduce_(0, owners.segments, of_records[owners.records], "amax")
    return numbers[tokens.segments]
