"""Some of the retained records, where there are more than an edit needs, or than a figure gains by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence

import numpy as np

from chip.data.embedded_image import ImageSource
from chip.data.hierarchy import Hierarchy
from chip.data.record import Record
from chip.data.request import ForgetRequest, matched_records

MAX_ASKED = 10_000
"""Questions of a group that are asked before and after an edit: its share of right answers is then known to 1 %."""


def sample_for_edit(
    request: ForgetRequest, others: int, neighbors: int, seed: int = 0, total: int = 0
) -> ForgetRequest:
    """The request among the records that an edit goes by: the target's, all who show its images, the siblings, the
    matched records of others, and of the rest so many, from every institution its part.

    Args:
        others: records of the rest.
        neighbors: siblings, and as many matched records, at most.
        total: where there are fewer of all these, more of the rest.
    """
    records, partition, generator = request.hierarchy.records, request.partition, np.random.default_rng(seed)
    always = {*partition.forget, *partition.ancestors, *_on_target_images(request)}
    matched = matched_records(request)
    rest = sorted({*partition.retain_other} - always - {*matched})
    trained = [index for index in rest if not records[index].held_out]
    near = {index for group in (partition.siblings, matched) for index in draw(group, records, neighbors, generator)}
    drawn = draw(trained, records, max(others, total - len(near)), generator)
    return _among(request, always.union(near, drawn, _held_out(rest, records, generator)))


def _held_out(rest: Sequence[int], records: Sequence[Record], generator: np.random.Generator) -> list[int]:
    """What trials ask; they ask of a few hundred."""
    return draw([index for index in rest if records[index].held_out], records, MAX_ASKED, generator)


def sample_to_ask(request: ForgetRequest, most: int = MAX_ASKED, seed: int = 0) -> ForgetRequest:
    """The request among the records that are asked: the target's, and of each other group `most`, whether an edit goes
    by them or not."""
    records, generator = request.hierarchy.records, np.random.default_rng([seed, 1])
    groups = request.partition.groups
    drawn = (draw(groups[group], records, most, generator) for group in groups if group != "target")
    return _among(request, {*groups["target"]}.union(*drawn))


def draw(indices: Sequence[int], records: Sequence[Record], most: int, generator: np.random.Generator) -> list[int]:
    """`most` of the indices, ascending: each institution has the part that it has of all of them, to one record."""
    if len(indices) <= most:
        return sorted(indices)
    strata: dict[Hashable, list[int]] = defaultdict(list)
    for index in indices:
        strata[records[index].path[0]].append(index)
    # Every so many-th of an order that is random within an institution: systematic sampling.
    ordered = [stratum[place] for stratum in strata.values() for place in generator.permutation(len(stratum))]
    step, start = len(ordered) / most, generator.random()
    return sorted(ordered[int((number + start) * step)] for number in range(most))


def _on_target_images(request: ForgetRequest) -> Iterable[int]:
    """Retained records that show an image of the target."""
    records, partition = request.hierarchy.records, request.partition
    own: set[ImageSource] = {image for index in partition.forget for image in records[index].images}
    return (index for index in partition.retained if own and not own.isdisjoint(records[index].images))


def _among(request: ForgetRequest, taken: Collection[int]) -> ForgetRequest:
    """The request among these records; itself, where they are all."""
    records = request.hierarchy.records
    if len(taken) == len(records):
        return request
    return request.among(Hierarchy([records[index] for index in sorted(taken)]))
