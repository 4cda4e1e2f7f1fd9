"""What a model that knows nothing of a record's node would score on it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from chip.data.hierarchy import Hierarchy
from chip.data.request import Partition

_OPTION = re.compile(r"(?:^|\s)\(?([A-Z])[).:]\s")


def count_options(question: str) -> int:
    """How many options (`A) ... B) ...`) the question lists."""
    return len(set(_OPTION.findall(question)))


def chance_accuracy(hierarchy: Hierarchy, partition: Partition) -> Tensor:
    """(records,) fp64: what a model that knows nothing of a record's node would score on it.

    1 / options for a classification. Otherwise the share in which its answer is the most common one to the same
    question at the other nodes of the targets' level (at all other records, for records above that level).
    """
    depth = max(len(target.path) for target in partition.targets)
    records = hierarchy.records
    everywhere: dict[str, Counter[str]] = {}
    own: dict[tuple[str, tuple[str, ...]], Counter[str]] = {}
    for record in records:
        node = record.path[:depth]
        everywhere.setdefault(record.question, Counter())[record.answer] += 1
        own.setdefault((record.question, node), Counter())[record.answer] += 1
    result = torch.zeros(len(records), dtype=torch.float64)
    for index, record in enumerate(records):
        if record.task == "classification" and count_options(record.question) > 1:
            result[index] = 1 / count_options(record.question)
            continue
        elsewhere = everywhere[record.question] - own[record.question, record.path[:depth]]
        most = max(elsewhere.values(), default=0)
        common = [answer for answer, count in elsewhere.items() if count == most]
        result[index] = (record.answer in common) / len(common) if common else 0.0
    return result


def mean_over(values: Tensor, indices: Iterable[int]) -> float:
    """Mean over some records; NaN over none."""
    return float(values[list(indices)].mean())
