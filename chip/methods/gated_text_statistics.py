"""What gates in the text model are made from: what goes into an MLP at the words of the target's questions, and at all
other tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.kernels.gram import accumulation_dtype, symmetrize_
from chip.methods.statistics import FirstMoment, GroupedMean, SecondMoment
from chip.model.tokens import TokenRole, Tokens

WORDS, PLACES = 2**24, 2**20
"""A cluster's key is (target's number × `PLACES` + place in the question) × `WORDS` + vocabulary id."""
EVERYWHERE = -1
"""In the place of a place: in any question, with an image or without."""
MOST_CLUSTERS = 4096
"""That are looked at; of more those that the most questions show."""
SAMPLE = 32
"""Tokens of the first batch that are held, to see what stands between the maps."""


@dataclass(frozen=True)
class TextWeights:
    """Which records ask about a target in text only, and which are retained."""

    target: Tensor
    """(records,) int64: the number of the target whose text-only record it is; else −1."""
    retained: Tensor
    """(records,) fp32, 1 or 0; general records too."""
    text_only: Tensor
    """(records,) fp32, 1 or 0: the retained records that have no image, general ones apart."""

    @classmethod
    def of(cls, request: ForgetRequest, device: torch.device) -> TextWeights:
        records, own = request.records, len(request.hierarchy.records)
        target = torch.full((len(records),), -1)
        for number, indices in enumerate(request.partition.forget_of.values()):
            target[[i for i in indices if records[i].image is None and not records[i].held_out]] = number
        retained = torch.zeros(len(records))
        retained[[*request.partition.retained, *range(own, len(records))]] = 1
        plain = torch.tensor([record.image is None for record in records[:own]] + [False] * (len(records) - own))
        return cls(target.to(device), retained.to(device), (retained * plain).to(device))


@dataclass(frozen=True)
class SortedTokens:
    """What the tokens of a batch are to gates in the text model."""

    retained: Tensor
    """(n,) fp32: how many retained records own each."""
    text_only: Tensor
    """(n,) fp32: how many retained text-only records have each in their question."""
    questions: Tensor
    """(n,) fp32: how many retained records have each in their question."""
    forgotten: Tensor
    """(n,) fp32: how many text-only records of a target have each in their question, and nobody retained owns it."""
    places: Tensor
    """(n,) int64: in the question, from 0; of tokens in none it means nothing."""
    keys: Tensor
    """(n,) int64: the cluster of each forgotten token; of others it means nothing."""

    @classmethod
    def of(cls, tokens: Tokens, weights: TextWeights) -> SortedTokens:
        owners, segments = tokens.owners, tokens.segments
        target = torch.full((owners.count,), -1, dtype=torch.int64, device=segments.device)
        target.scatter_reduce_(0, owners.segments, weights.target[owners.records], "amax")
        count = torch.stack((weights.retained, weights.text_only, (weights.target >= 0).float()), 1)
        retained, text_only, forgotten = owners.total(count)[segments].T
        asks = _asks(tokens) & ~tokens.starts
        places = _places(tokens)
        keys = (target[segments] * PLACES + places) * WORDS + tokens.ids
        own = forgotten * (asks & (retained == 0))
        return cls(retained, text_only * asks, retained * asks, own, places, keys)


def _asks(tokens: Tokens) -> Tensor:
    """(n,) bool: tokens of a question, and the one behind it that predicts the answer's first."""
    answers = (tokens.roles == TokenRole.ANSWER).nonzero()[:, 0]
    first = torch.full((tokens.owners.count,), len(tokens.roles), device=answers.device)
    first.scatter_reduce_(0, tokens.segments[answers], answers, "amin")
    asks = tokens.roles == TokenRole.QUESTION
    asks[first[first < len(asks)]] = True
    return asks


def _places(tokens: Tokens) -> Tensor:
    """(n,) int64: how many tokens of the record's question, or behind it, come before each."""
    owners, index = tokens.owners, torch.arange(len(tokens.ids), device=tokens.ids.device)
    counted = (tokens.roles == TokenRole.QUESTION) | (tokens.roles == TokenRole.ANSWER)
    count = torch.zeros(owners.count, dtype=torch.int64, device=index.device)
    count.index_add_(0, tokens.segments, counted.long())
    begin = torch.full_like(count, len(index)).scatter_reduce_(0, tokens.segments, index, "amin")
    before = counted.cumsum(0) - counted.long()
    within = before - before[begin.clamp(max=max(len(index) - 1, 0))][tokens.segments]
    # What a record shares with others stands in the first of its segments.
    records, row = torch.unique(owners.records, return_inverse=True)
    first = torch.full((len(records),), owners.count, device=index.device)
    first.scatter_reduce_(0, row, owners.segments, "amin")
    ahead = torch.zeros_like(count)
    ahead[owners.segments] = torch.where(first[row] < owners.segments, count[first[row]], 0)
    places: Tensor = within + ahead[tokens.segments]
    return places


class InputStatistics:
    """First look at what goes into an MLP: moments of what is retained, and means of the target's tokens, in clusters:
    the same word at the same place of the question."""

    def __init__(self, weights: TextWeights, d_in: int) -> None:
        self.weights, device = weights, weights.target.device
        self.retained, self._sum = SecondMoment(d_in, device), FirstMoment(1, d_in, device)
        self.clusters = GroupedMean(d_in, device)
        self.sample = torch.empty(0, d_in, device=device)

    def update(self, tokens: Tokens) -> None:
        what = SortedTokens.of(tokens, self.weights)
        stays, own = what.retained > 0, what.forgotten > 0
        self.retained.update(tokens.inputs[stays], what.retained[stays])
        self._sum.update(tokens.inputs[stays], what.retained[stays, None])
        self.clusters.update(tokens.inputs[own], what.keys[own], what.forgotten[own])
        self.sample = self.sample if len(self.sample) else tokens.inputs[:SAMPLE]

    def merge(self, distributed: DistributedContext) -> None:
        for part in (self.retained, self._sum, self.clusters):
            part.merge(distributed)

    @property
    def mean(self) -> Tensor:
        """(d_in,): of the retained."""
        return self._sum.mean[0]

    @property
    def moment(self) -> Tensor:
        """C (d_in, d_in): E[x xᵀ] of the retained; symmetric."""
        return symmetrize_(self.retained.upper.clone()) / self.retained.count.clamp(min=1)

    @property
    def keys(self) -> Tensor:
        """(c,) int64, ascending: the clusters that are looked at."""
        most = (-self.clusters.count).argsort(stable=True)[:MOST_CLUSTERS]
        return self.clusters.keys[most.sort().values]


class ResponseStatistics:
    """Second look at what goes into an MLP: how retained tokens respond to each detector at most, and those of its own
    cluster at least."""

    def __init__(self, seen: InputStatistics, keys: Tensor, detectors: Tensor) -> None:
        """`keys`: (c,) int64, of the clusters. `detectors`: (c, d_in)."""
        self.seen, self.keys, self.detectors = seen, keys, detectors
        self.highest = detectors.new_full((len(keys),), -torch.inf)
        """(c,)"""
        self.lowest = detectors.new_full((len(keys),), torch.inf)
        """(c,)"""

    def update(self, tokens: Tokens) -> None:
        what = SortedTokens.of(tokens, self.seen.weights)
        stays, own = what.retained > 0, torch.isin(what.keys, self.keys) & (what.forgotten > 0)
        if len(self.keys) and stays.any():
            responses = tokens.inputs[stays].to(self.detectors.dtype) @ self.detectors.T
            self.highest = torch.maximum(self.highest, responses.amax(0))
        if own.any():
            rows = torch.searchsorted(self.keys, what.keys[own])
            responses = (tokens.inputs[own].to(self.detectors.dtype) * self.detectors[rows]).sum(1)
            self.lowest.scatter_reduce_(0, rows, responses, "amin")

    def merge(self, distributed: DistributedContext) -> None:
        of_each = self.highest.new_zeros(distributed.world_size, 2, len(self.keys))
        of_each[distributed.rank] = torch.stack((self.highest, -self.lowest)).nan_to_num(
            neginf=torch.finfo(self.highest.dtype).min
        )
        distributed.all_reduce_(of_each)
        self.highest, self.lowest = of_each[:, 0].amax(0), -of_each[:, 1].amax(0)


class OutputStatistics:
    """What goes into an MLP's last map, and what leaves its layer: how much each hidden unit varies, where the target's
    clusters are, and where those who stay are at the same places of their questions."""

    def __init__(self, weights: TextWeights, d_in: int, d_out: int) -> None:
        self._weights, device = weights, weights.target.device
        self._hidden = FirstMoment(1, 2 * d_in, device)
        self.clusters = GroupedMean(d_out, device)
        self.destinations = GroupedMean(d_out, device)
        """Of the retained at each place of a question in text only, and `EVERYWHERE`."""
        self.sample = torch.empty(0, d_in, device=device)

    def update(self, tokens: Tokens) -> None:
        assert tokens.outputs is not None
        what = SortedTokens.of(tokens, self._weights)
        stays, own = what.retained > 0, what.forgotten > 0
        h = tokens.inputs[stays].to(accumulation_dtype(tokens.inputs.device))
        self._hidden.update(torch.cat((h, h.square()), 1), what.retained[stays, None])
        self.clusters.update(tokens.outputs[own], what.keys[own], what.forgotten[own])
        plain, asked = what.text_only > 0, what.questions > 0
        self.destinations.update(tokens.outputs[plain], what.places[plain], what.text_only[plain])
        everywhere = torch.full_like(what.places[asked], EVERYWHERE)
        self.destinations.update(tokens.outputs[asked], everywhere, what.questions[asked])
        self.sample = self.sample if len(self.sample) else tokens.inputs[:SAMPLE]

    def merge(self, distributed: DistributedContext) -> None:
        for part in (self._hidden, self.clusters, self.destinations):
            part.merge(distributed)

    @property
    def square(self) -> Tensor:
        """(d_in,): E[h²] of the retained."""
        return self._hidden.mean[0].chunk(2)[1]

    @property
    def deviation(self) -> Tensor:
        """(d_in,): standard deviation of h of the retained."""
        mean, square = self._hidden.mean[0].chunk(2)
        return (square - mean.square()).clamp(min=0).sqrt()

    def moves(self, keys: Tensor) -> Tensor:
        """(c, d_out): from each cluster to the retained ones at its place, else in all questions like it."""
        places = keys // WORDS % PLACES
        plain = self.destinations.keys != EVERYWHERE
        known = torch.isin(places, self.destinations.keys)
        rows = torch.searchsorted(self.destinations.keys, places[known])
        total, count = self.destinations.total, self.destinations.count
        some = plain if plain.any() else ~plain
        result = (total[some].sum(0) / count[some].sum().clamp(min=1)).repeat(len(keys), 1)
        result[known] = total[rows] / count[rows, None]
        moved: Tensor = result - self.clusters.mean_at(keys)
        return moved


class Held:
    """A module that nothing more is to be known of; `seen` is what was known before."""

    def __init__(self, seen: OutputStatistics | None = None) -> None:
        self.seen = seen

    def update(self, tokens: Tokens) -> None:
        """Nothing."""

    def merge(self, distributed: DistributedContext) -> None:
        """Nothing."""
