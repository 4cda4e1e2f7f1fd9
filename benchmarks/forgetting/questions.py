"""Which wordings are for what: one learns from some, chooses settings by others, and reports the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.forgetting.worlds import World
from chip.data.hierarchy import Hierarchy
from chip.data.request import ForgetRequest

LEARNED, TUNED, REPORTED = ("train",), ("validation",), ("train", "rephrased")
"""Splits. A method learns from the first and may be tuned by the second; of the third it is given what has been
trained, and nothing else."""

MAX_QUESTIONS = 600
"""Of a group other than the target, about so many questions are asked, all of some pictures."""


@dataclass(frozen=True)
class Questions:
    """Records of some wordings, and whom each concerns when a target is forgotten."""

    request: ForgetRequest
    groups: Mapping[str, tuple[int, ...]]
    """As `chip.evaluation.groups` has them."""


def questions(world: World, target: str, splits: Sequence[str], most: int | None = None, seed: int = 0) -> Questions:
    """The world's records of these splits.

    Args:
        most: of each group but the target and what it shares, pictures are drawn until so many of the world's
            questions are together; the same pictures whatever the splits.
    """
    whole, node = world.hierarchy.records, world.hierarchy.find(target)
    groups = world.groups(node)
    if most is not None:
        groups = {
            group: indices if group in ("target", "shared") else _some(world, indices, most, seed)
            for group, indices in groups.items()
        }
    selected = sorted(i for indices in groups.values() for i in indices if whole[i].split in splits)
    place = {index: number for number, index in enumerate(selected)}
    request = ForgetRequest.of(Hierarchy([whole[index] for index in selected]), [target])
    return Questions(request, {group: tuple(place[i] for i in of if i in place) for group, of in groups.items()})


def _some(world: World, indices: Sequence[int], most: int, seed: int) -> tuple[int, ...]:
    """Picture by picture in random order, until there are `most`."""
    pictures: dict[object, list[int]] = {}
    for index in indices:
        pictures.setdefault(world.hierarchy.records[index].image, []).append(index)
    by_picture, selected = list(pictures.values()), list[int]()
    for number in np.random.default_rng(seed).permutation(len(by_picture)).tolist():
        if len(selected) >= most:
            break
        selected += by_picture[number]
    return tuple(sorted(selected))
