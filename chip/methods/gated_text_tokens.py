"""What tokens are to gates in the text model: words of the target's questions, of others' questions, and all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chip.data.request import ForgetRequest
from chip.methods.gated_text_stand_ins import asked_in_text, nodes_asked_about, stand_ins
from chip.model.tokens import TokenRole, Tokens

WORDS, PLACES = 2**24, 2**20
"""A cluster's key is (target's number × `PLACES` + place in the question) × `WORDS` + vocabulary id."""
MOST_BEHIND = 64
"""Rare words in a row that are counted."""
ANYWHERE = PLACES - 1
"""In the place of a place: at any."""


@dataclass(frozen=True)
class TextWeights:
    """Which records ask about a target in text only, and which are retained."""

    target: Tensor
    """(records,) int64: the number of the target whose text-only record it is; else −1."""
    retained: Tensor
    """(records,) fp32, 1 or 0; general records too."""
    node: Tensor
    """(records,) int64: as `nodes_asked_about` has it."""
    stand_in: Tensor
    """(records,) int64: the number of the stand-in whose text-only record it is; else −1."""
    stand_in_of: Tensor
    """(targets,) int64: the number of each target's stand-in."""

    @classmethod
    def of(cls, request: ForgetRequest, device: torch.device) -> TextWeights:
        records, own = request.records, len(request.hierarchy.records)
        target = torch.full((len(records),), -1)
        for number, indices in enumerate(request.partition.forget_of.values()):
            target[asked_in_text(request, indices)] = number
        retained = torch.zeros(len(records))
        retained[[*request.partition.retained, *range(own, len(records))]] = 1
        node = nodes_asked_about(request)
        found = (target, retained, node, *stand_ins(request, node))
        return cls(*(each.to(device) for each in found))

    @property
    def counts(self) -> Tensor:
        """(records, 4) fp32, 1 or 0: which are retained, which ask about a node in text, which are a stand-in's, and
        which are to be forgotten."""
        return torch.stack(
            (self.retained, *((each >= 0).float() for each in (self.node, self.stand_in, self.target))), 1
        )


@dataclass(frozen=True)
class SortedTokens:
    """What the tokens of a batch are to gates in the text model."""

    retained: Tensor
    """(n,) fp32: how many retained records own each."""
    asked: Tensor
    """(n,) fp32: how many retained text-only records, `TextWeights.node`, have each in their question."""
    examples: Tensor
    """(n,) fp32: how many text-only records of a stand-in have each in their question."""
    stand_ins: Tensor
    """(n,) int64: the number of that stand-in; of other tokens it means nothing."""
    forgotten: Tensor
    """(n,) fp32: how many text-only records of a target have each in their question, and nobody retained owns it."""
    places: Tensor
    """(n,) int64: in the question, from 0; of tokens in none it means nothing."""
    keys: Tensor
    """(n,) int64: the cluster of each forgotten token; of others it means nothing."""

    @classmethod
    def of(cls, tokens: Tokens, weights: TextWeights) -> SortedTokens:
        owners, segments = tokens.owners, tokens.segments
        nobody = torch.full((owners.count,), -1, dtype=torch.int64, device=segments.device)
        target, stand_in = (
            nobody.scatter_reduce(0, owners.segments, numbers[owners.records], "amax")[segments]
            for numbers in (weights.target, weights.stand_in)
        )
        retained, asked, examples, forgotten = owners.total(weights.counts)[segments].T
        asks = _asks(tokens) & ~tokens.starts
        places = _places(tokens)
        keys = (target * PLACES + places) * WORDS + tokens.ids
        own = forgotten * (asks & (retained == 0))
        return cls(retained, asked * asks, examples * asks, stand_in, own, places, keys)


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
    first, row = _first_segments(tokens)
    ahead = torch.zeros_like(count)
    ahead[owners.segments] = torch.where(first[row] < owners.segments, count[first[row]], 0)
    places: Tensor = within + ahead[tokens.segments]
    return places


def rare_behind(tokens: Tokens, common: Tensor) -> Tensor:
    """(n,) int64: how many words that are not common follow each token before the next one that is, in its question.

    Of tokens that several records share it is the fewest.
    """
    owners, index = tokens.owners, torch.arange(len(tokens.ids), device=tokens.ids.device)
    rare = (tokens.roles == TokenRole.QUESTION) & ~torch.isin(tokens.ids, common)
    stops = torch.where(rare, len(index), index).flip(0).cummin(0).values.flip(0)  # the next that is not rare
    end = torch.zeros(owners.count, dtype=torch.int64, device=index.device)
    end.scatter_reduce_(0, tokens.segments, index + 1, "amax")
    begin = torch.full_like(end, len(index)).scatter_reduce_(0, tokens.segments, index, "amin")
    behind = torch.minimum(stops, end[tokens.segments]) - index - 1
    # A shared piece goes on in the pieces of those that share it.
    start = begin.clamp(max=len(index) - 1)
    lead = torch.minimum(stops[start], end) - start
    first, row = _first_segments(tokens)
    later = owners.segments > first[row]
    more = torch.full_like(end, MOST_BEHIND)
    more.scatter_reduce_(0, first[row][later], lead[owners.segments[later]], "amin")
    goes_on = (stops >= end[tokens.segments]) & (more < MOST_BEHIND)[tokens.segments]
    result: Tensor = (behind + torch.where(goes_on, more[tokens.segments], 0)).clamp(0, MOST_BEHIND)
    return result


def _first_segments(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The first segment of each record (r,); and of each pair of segment and record the record's row (p,)."""
    owners = tokens.owners
    records, row = torch.unique(owners.records, return_inverse=True)
    first = torch.full((len(records),), owners.count, device=row.device)
    return first.scatter_reduce_(0, row, owners.segments, "amin"), row


def words_of_nodes(tokens: Tokens, asks: Tensor, node: Tensor) -> Tensor:
    """(p,) int64: node × `WORDS` + vocabulary id, of the words that the nodes' questions have.

    Args:
        asks: (n,) bool: the tokens that count.
        node: (records,) int64, −1 for none.
    """
    owners = tokens.owners
    numbers = node[owners.records]
    order = owners.segments.argsort(stable=True)
    order = order[numbers[order] >= 0]
    count = torch.bincount(owners.segments[order], minlength=owners.count)
    begin = count.cumsum(0) - count
    asked = asks.nonzero()[:, 0]
    times = count[tokens.segments[asked]]
    rows = asked.repeat_interleave(times)  # a token for each node that owns it
    within = torch.arange(len(rows), device=rows.device) - (times.cumsum(0) - times).repeat_interleave(times)
    found: Tensor = torch.unique(numbers[order][begin[tokens.segments[rows]] + within] * WORDS + tokens.ids[rows])
    return found
