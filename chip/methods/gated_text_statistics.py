"""What gates in the text model are made from: what goes into an MLP at the words of the target's questions and at all
other tokens, and what leaves its layer."""

from __future__ import annotations

import torch
from torch import Tensor

from chip.distributed import DistributedContext
from chip.kernels.gram import accumulation_dtype
from chip.methods.gated_statistics import NEAREST, NearestStatistics
from chip.methods.gated_text_tokens import (
    ANYWHERE,
    MOST_BEHIND,
    PLACES,
    WORDS,
    SortedTokens,
    TextWeights,
    rare_behind,
    words_of_nodes,
)
from chip.methods.statistics import FirstMoment, GroupedMean, SecondMoment
from chip.model.tokens import Tokens

COMMON = 0.5
"""A word is common if the questions about so large a share of other nodes have it: it tells nothing of whom they ask.
Of a rare one others with the same word are no example: they may have the name."""
NEAR = 3
"""How many places further examples of a rare word may stand, since names are not of one length."""
FEWEST = 0.05
"""A cluster is looked at if so large a share of its target's questions is in it."""
MOST_CLUSTERS = 1024
"""That are looked at; of more those that the most questions show."""
FOLLOWING = MOST_BEHIND + 1
"""How many numbers of rare words there are, that may follow one."""
SAMPLE = 32
"""Tokens of the first batch that are held, to see what stands between the maps."""


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
        return self.retained.mean.dense()

    @property
    def keys(self) -> Tensor:
        """(c,) int64, ascending: the clusters that are looked at."""
        target, count = self.clusters.keys // (PLACES * WORDS), self.clusters.count
        questions = torch.bincount(self.weights.target[self.weights.target >= 0])
        order = (-count).argsort(stable=True)[:MOST_CLUSTERS].sort().values
        found: Tensor = self.clusters.keys[order[(count >= FEWEST * questions[target])[order]]]
        return found


class NearWords(NearestStatistics):
    """Next looks at what goes into an MLP: the retained tokens that respond most to each detector."""

    def __init__(self, seen: InputStatistics, detectors: Tensor, earlier: NearWords | None = None) -> None:
        super().__init__(seen, detectors, earlier)
        self._earlier = earlier

    def _retained(self, tokens: Tokens) -> Tensor:
        return SortedTokens.of(tokens, self.seen.weights).retained > 0

    @property
    def nearest(self) -> Tensor:
        """(c, k, d_in): the nearest of each detector, in this look and in those before."""
        pool = self.pool
        rows = (pool @ self.directions.T).topk(min(NEAREST, len(pool)), dim=0).indices  # (k, c)
        earlier = [] if self._earlier is None else [self._earlier.nearest]
        return torch.cat((*earlier, pool[rows.T]), 1)


class ResponseStatistics:
    """Last look at what goes into an MLP: how retained tokens respond to each detector at most, and those of its own
    cluster at least."""

    def __init__(self, seen: InputStatistics, detectors: Tensor) -> None:
        """`detectors`: (c, d_in), of the clusters that are looked at; none where nothing can be told apart."""
        self.seen, self.keys, self.detectors = seen, seen.keys[: len(detectors)], detectors
        self.highest = detectors.new_full((len(self.keys),), -torch.inf)
        """(c,)"""
        self.lowest = detectors.new_full((len(self.keys),), torch.inf)
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
        self.highest, self.lowest = distributed.greatest(self.highest), -distributed.greatest(-self.lowest)


class OutputStatistics:
    """First look at what goes into an MLP's last map, and at what leaves its layer: how large each hidden unit is,
    where the target's clusters are, and which nodes' questions have which words."""

    def __init__(self, weights: TextWeights, d_in: int, d_out: int) -> None:
        self.weights, device = weights, weights.target.device
        self._squares = FirstMoment(1, d_in, device)
        self.clusters = GroupedMean(d_out, device)
        self._words = torch.empty(0, dtype=torch.int64, device=device)
        """(p,) int64, ascending: node × `WORDS` + vocabulary id."""
        self.sample = torch.empty(0, d_in, device=device)

    def update(self, tokens: Tokens) -> None:
        assert tokens.outputs is not None
        what = SortedTokens.of(tokens, self.weights)
        stays, own = what.retained > 0, what.forgotten > 0
        h = tokens.inputs[stays].to(accumulation_dtype(tokens.inputs.device))
        self._squares.update(h.square(), what.retained[stays, None])
        self.clusters.update(tokens.outputs[own], what.keys[own], what.forgotten[own])
        self._words = torch.unique(torch.cat((self._words, words_of_nodes(tokens, what.asked > 0, self.weights.node))))
        self.sample = self.sample if len(self.sample) else tokens.inputs[:SAMPLE]

    def merge(self, distributed: DistributedContext) -> None:
        for part in (self._squares, self.clusters):
            part.merge(distributed)
        self._words = distributed.union(self._words)

    @property
    def square(self) -> Tensor:
        """(d_in,): E[h²] of the retained."""
        return self._squares.mean[0]

    @property
    def common(self) -> Tensor:
        """(w,) int64, ascending: vocabulary ids of common words."""
        nodes = torch.unique(self._words // WORDS)
        ids, count = torch.unique(self._words % WORDS, return_counts=True)
        common: Tensor = ids[count >= COMMON * len(nodes)]
        return common


class DestinationStatistics:
    """Second look at what leaves a layer: where the examples are that the target's clusters are sent to, words of the
    questions about its stand-in.

    Of a common word they are the same word, at the same place if there is one. Of a rare one, which may be a piece of a
    name, they are the rare words near that place that have as many others behind them before the next common one, or
    nearly as many: a name is known at its end. Where there are none, they are all that the questions have.
    """

    def __init__(self, seen: OutputStatistics) -> None:
        self.seen, self._common = seen, seen.common
        keys, like = seen.clusters.keys, seen.clusters.total
        self._wanted = torch.unique(torch.cat((keys % (PLACES * WORDS), ANYWHERE * WORDS + keys % WORDS)))
        self._common_means = GroupedMean(like.shape[1], like.device)
        """By stand-in, place and word; by stand-in and word with the place `ANYWHERE`; and of all of a stand-in's as
        the key −1 − its number."""
        self._rare_means = GroupedMean(like.shape[1], like.device)
        """By stand-in, how many rare words follow, and place: (number × `FOLLOWING` + words) × `PLACES` + place."""
        self._behind = torch.full_like(keys, MOST_BEHIND)
        """(c,): how many rare words follow each cluster."""

    def update(self, tokens: Tokens) -> None:
        assert tokens.outputs is not None
        what = SortedTokens.of(tokens, self.seen.weights)
        common, behind = torch.isin(tokens.ids, self._common), rare_behind(tokens, self._common)
        own = what.forgotten > 0
        rows = torch.searchsorted(self.seen.clusters.keys, what.keys[own])
        self._behind.scatter_reduce_(0, rows, behind[own], "amin")
        for place in (what.places, torch.full_like(what.places, ANYWHERE)):
            name = place * WORDS + tokens.ids
            keys = what.stand_ins * (PLACES * WORDS) + name
            self._add(self._common_means, what.examples * (common & torch.isin(name, self._wanted)), keys, tokens)
        self._add(self._common_means, what.examples, -1 - what.stand_ins, tokens)
        following = (what.stand_ins * FOLLOWING + behind) * PLACES + what.places
        self._add(self._rare_means, what.examples * ~common, following, tokens)

    def _add(self, means: GroupedMean, weights: Tensor, keys: Tensor, tokens: Tokens) -> None:
        assert tokens.outputs is not None
        counted = weights > 0
        means.update(tokens.outputs[counted], keys[counted], weights[counted])

    def merge(self, distributed: DistributedContext) -> None:
        self._common_means.merge(distributed)
        self._rare_means.merge(distributed)
        self._behind = -distributed.greatest(-self._behind)

    @property
    def has_examples(self) -> bool:
        return len(self._common_means.keys) > 0

    def moves(self, keys: Tensor) -> Tensor:
        """(c, d_out): from each cluster to its examples."""
        stand_in = self.seen.weights.stand_in_of[keys // (PLACES * WORDS)]
        whose, name = stand_in * (PLACES * WORDS), keys % (PLACES * WORDS)
        result = self._common_means.mean_at(-1 - stand_in)
        for known_as in (whose + ANYWHERE * WORDS + keys % WORDS, whose + name):  # what fits best comes last
            known = torch.isin(known_as, self._common_means.keys)
            result[known] = self._common_means.mean_at(known_as[known])
        behind = self._behind[torch.searchsorted(self.seen.clusters.keys, keys)]
        for row in (~torch.isin(keys % WORDS, self._common)).nonzero()[:, 0].tolist():
            like = self._like(int(stand_in[row]), int(behind[row]), int(name[row]) // WORDS)
            if like.any():
                result[row] = self._rare_means.total[like].sum(0) / self._rare_means.count[like].sum()
        moves: Tensor = result - self.seen.clusters.mean_at(keys)
        return moves

    def _like(self, stand_in: int, behind: int, place: int) -> Tensor:
        """(k,) bool: which rare words of a stand-in are examples of a rare word."""
        keys = self._rare_means.keys
        near = (keys // (FOLLOWING * PLACES) == stand_in) & ((keys % PLACES - place).abs() <= NEAR)
        off = torch.where(near, (keys // PLACES % FOLLOWING - behind).abs(), FOLLOWING)
        like: Tensor = near & (off == off.amin()) if len(off) else near
        return like


class Held:
    """A module of which nothing more is to be known than was `seen`."""

    def __init__(self, seen: DestinationStatistics | None = None) -> None:
        self.seen = seen

    def update(self, tokens: Tokens) -> None:
        """Nothing."""

    def merge(self, distributed: DistributedContext) -> None:
        """Nothing."""
