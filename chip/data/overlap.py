"""Records that are the target's and somebody else's at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

from chip.data.answers import normalized
from chip.data.embedded_image import ImageSource, content_of, encoded_size
from chip.data.record import Record
from chip.data.request import ForgetRequest

SameImage = Callable[[ImageSource, ImageSource], bool]


def count_overlap(request: ForgetRequest, or_same: SameImage = lambda *_: False) -> int:
    """How many of the target's records ask a retained record's question about the same image, and have its answer.

    No edit can take one and leave the other. Images are the same where their bytes are, wherever they lie; files are
    read only where they have one size.

    Args:
        or_same: tells of other bytes whether they are the same image.
    """
    records = request.hierarchy.records
    targets = [records[index] for index in request.partition.forget]
    retained: dict[tuple[object, ...], list[Record]] = {_words(record): [] for record in targets}
    for index in request.partition.retained:
        if (words := _words(records[index])) in retained:
            retained[words].append(records[index])
    same = cache(lambda one, other: _same_image(one, other) or or_same(one, other))
    return sum(
        any(
            len(record.images) == len(other.images) and all(map(same, record.images, other.images))
            for other in retained[_words(record)]
        )
        for record in targets
    )


def shown_among(images: Collection[ImageSource]) -> Callable[[ImageSource], bool]:
    """Whether an image is one of these, wherever its file lies: the same where the bytes are."""
    by_size: dict[int | None, list[ImageSource]] = defaultdict(list)
    for image in images:
        by_size[_size(image)].append(image)

    def shown(image: ImageSource) -> bool:
        return any(_same_image(image, other) for other in by_size.get(_size(image), ()))

    return shown


def _words(record: Record) -> tuple[object, ...]:
    return normalized(record.question), normalized(record.answer), record.history


def _same_image(one: ImageSource, other: ImageSource) -> bool:
    if one == other:
        return True
    size = _size(one)
    return size is not None and size == _size(other) and content_of(one) == content_of(other)


def _size(image: ImageSource) -> int | None:
    """In bytes; None of what is no file, which is refused when it is opened."""
    return encoded_size(image) if not isinstance(image, Path) or image.is_file() else None
