"""The images of records, decoded: a few stay for the next question about them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from threading import Lock

from PIL import Image

from chip.data.embedded_image import ImageSource, content_digest
from chip.data.image_file import header_pixels
from chip.data.record import NOWHERE, Record, image_size, open_image
from chip.data.window import Window
from chip.model.lazy_image import LazyImage

MOST_PIXELS = 1 << 26
"""Of all that stay, together: 200 MB. The last one stays in any case."""
LARGE = 1 << 22
"""Pixels from which on an image is decoded only where it must be."""


class DecodedImages:
    """Each image is decoded once for all its questions, as long as few others come between."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[ImageSource, Window | None], Image.Image] = OrderedDict()
        self._pixels: dict[ImageSource, int] = {}
        self._large: dict[ImageSource, tuple[bytes, tuple[int, int]]] = {}
        self._shown: dict[ImageSource, bytes] = {}
        """Image -> SHA-256 of its pixels, of all that were decoded."""
        self._lock = Lock()  # batches are made ahead in a thread

    def open(self, record: Record) -> list[Image.Image]:
        """All images of the record, as `open_image` gives the first; `LARGE` ones as `LazyImage`.

        Raises:
            InputError: as `open_image`; where an image is lazy, when it is loaded.
        """
        return [self._open(replace(record, image=image, more_images=())) for image in record.images]

    def pixels(self, record: Record) -> int:
        """How many pixels the record's images have together, by their headers.

        Raises:
            InputError: a file is no image.
        """
        for image in record.images:
            if image not in self._pixels:
                self._pixels[image] = header_pixels(image, record.where or NOWHERE)
        return sum(self._pixels[image] for image in record.images)

    def same_pixels(self, one: ImageSource, other: ImageSource) -> bool:
        """Whether two images that were decoded look the same to the last bit, however they were saved."""
        return one in self._shown and self._shown[one] == self._shown.get(other)

    def _open(self, record: Record) -> Image.Image:
        if self.pixels(record) < LARGE:
            return self._decoded(record)
        assert record.image is not None
        if record.image not in self._large:
            self._large[record.image] = content_digest(record.image), image_size(record)
        digest, size = self._large[record.image]
        return LazyImage((digest, record.window), size, lambda: self._decoded(record))

    def _decoded(self, record: Record) -> Image.Image:
        assert record.image is not None
        key = record.image, record.window
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        image = open_image(record)
        assert image is not None
        if record.image not in self._shown:
            self._shown[record.image] = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
        with self._lock:
            self._kept[key] = image
            while len(self._kept) > 1 and sum(i.width * i.height for i in self._kept.values()) > MOST_PIXELS:
                self._kept.popitem(last=False)
        return image
