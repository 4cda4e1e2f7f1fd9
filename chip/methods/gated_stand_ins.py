"""What a target's picture is taken for once gates are open: a picture of somebody else's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping

from chip.data.answers import canonical_answer
from chip.data.request import ForgetRequest
from chip.methods.gated_text_stand_ins import ENOUGH


def stand_in_images(request: ForgetRequest, images: Mapping[Hashable, int]) -> dict[Hashable, Hashable]:
    """A retained image for each of the target's, of those that are asked about as much: the one whose questions share
    the fewest answers with it.

    The mean of all others is no picture: before it a model says what it holds for likely of anybody, and the target is
    one of those it was taught. Of like images one of a sibling's stands in.

    Args:
        images: the target's, each with its number.

    Returns:
        Image of the target's -> image that stands in for it; empty where nobody else has one.
    """
    records, partition = request.records, request.partition
    asked, siblings = _candidates(request, images), set(partition.siblings)
    near = {records[index].image for index in siblings}
    answers = {image: {canonical_answer(records[index]) for index in indices} for image, indices in asked.items()}
    most = max(map(len, asked.values()), default=0)
    possible = {image: number for number, image in enumerate(asked) if len(asked[image]) >= ENOUGH * most}
    own: dict[Hashable, list[str]] = {image: [] for image in images}
    for index in partition.forget:
        record = records[index]
        if record.image in own and not record.held_out:
            own[record.image].append(canonical_answer(record))

    def shared(image: Hashable, said: list[str]) -> tuple[int, bool, int]:
        return sum(answer in answers[image] for answer in said), image not in near, possible[image]

    return {image: min(possible, key=lambda other: shared(other, own[image])) for image in images if possible}


def _candidates(request: ForgetRequest, images: Mapping[Hashable, int]) -> Mapping[Hashable, list[int]]:
    """Images that are not the target's -> the trained records about nodes of its level that show them alone; where
    there are none, any that do."""
    records, partition = request.records, request.partition
    depth = min(len(target.path) for target in partition.targets)
    shown = [i for i in partition.retained if (image := records[i].image) is not None and image not in images]
    shown = [i for i in shown if not records[i].held_out and not records[i].more_images]
    deep = [i for i in shown if len(records[i].path) >= depth]
    asked: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index in deep or shown:
        asked[records[index].image].append(index)
    return asked
