"""Whom a target's questions in text are taken for once gates are open: somebody else of whom the same is asked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from chip.data.answers import canonical_answer
from chip.data.request import ForgetRequest

ENOUGH = 0.5
"""Text-only questions that a stand-in must have, as a share of what the node with the most of them has."""


def asked_in_text(request: ForgetRequest, indices: Iterable[int]) -> list[int]:
    """Those of the records at `indices` that show no image and were trained on."""
    records = request.hierarchy.records
    return [i for i in indices if records[i].image is None and not records[i].held_out]


def nodes_asked_about(request: ForgetRequest) -> Tensor:
    """(records,) int64: of retained text-only records the number of the node they ask about, one of the target's level;
    else −1. Where there are none, each retained text-only record counts as asking about a node of its own."""
    records, depth = request.records, _depth(request)
    plain = asked_in_text(request, request.partition.retained)
    deep = [i for i in plain if len(records[i].path) >= depth]
    numbers: dict[object, int] = {}
    node = torch.full((len(records),), -1)
    for index in deep or plain:
        node[index] = numbers.setdefault(records[index].path[:depth] if deep else index, len(numbers))
    return node


def stand_ins(request: ForgetRequest, node: Tensor) -> tuple[Tensor, Tensor]:
    """A node for each target, of those that are asked about as much: the one that shares the fewest answers with it.

    The mean of all others is nobody: there a model says what it holds for likely of anybody, and in a model that was
    taught few that is often what it was taught of the target. Of like nodes a sibling stands in. Where no other node is
    asked about, all that is asked in text stands in together.

    Args:
        node: as `nodes_asked_about` has it.

    Returns:
        (records,) int64: the number of the stand-in whose text-only record each is, else −1; and (targets,) int64: the
        number of each target's stand-in.
    """
    records, partition = request.records, request.partition
    asked, depth = (node >= 0).nonzero()[:, 0].tolist(), _depth(request)
    if all(len(records[index].path) < depth for index in asked):  # nobody to choose among
        return torch.where(node >= 0, 0, -1), torch.zeros(len(partition.forget_of), dtype=torch.int64)
    count, answers = Counter[int](), defaultdict[int, set[str]](set)
    for index in asked:
        number = int(node[index])
        count[number] += 1
        answers[number].add(canonical_answer(records[index]))
    possible = [number for number, times in count.items() if times >= ENOUGH * max(count.values())]
    chosen = []
    for target, indices in partition.forget_of.items():
        own = [canonical_answer(records[i]) for i in asked_in_text(request, indices)]
        siblings = set(node[list(partition.siblings_of[target])].tolist())
        chosen.append(min(possible, key=lambda n: (sum(a in answers[n] for a in own), n not in siblings, n)))
    of = torch.tensor(chosen)
    return torch.where(torch.isin(node, of), node, -1), of


def _depth(request: ForgetRequest) -> int:
    return min(len(target.path) for target in request.partition.targets)
