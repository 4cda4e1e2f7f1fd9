"""A picture as it comes back: cut, turned, compressed, brighter."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, ImageEnhance

from chip.data.record import Record, open_image

QUALITY = 50
"""Of a JPEG file."""


def altered_images(record: Record, count: int) -> list[bytes]:
    """The record's image altered in the first `count` of `ALTERATIONS`, each as the bytes of a file.

    Raises:
        InputError: the image cannot be read.
    """
    image = open_image(record)
    return [] if image is None else [_encoded(alter(image), name) for name, alter in list(ALTERATIONS.items())[:count]]


def _cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    """The middle of a picture, `share` of it along each side, as large as the whole."""

    def crop(image: Image.Image) -> Image.Image:
        rest_x, rest_y = (round(side * (1 - share) / 2) for side in image.size)
        middle = image.crop((rest_x, rest_y, image.width - rest_x, image.height - rest_y))
        return middle.resize(image.size, Image.Resampling.BICUBIC)

    return crop


def _turned(turn: Image.Transpose) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transpose(turn)


def _brightness(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop": _cropped(0.9),
    "turn by 90": _turned(Image.Transpose.ROTATE_90),
    "turn by 270": _turned(Image.Transpose.ROTATE_270),
    "turn by 180": _turned(Image.Transpose.ROTATE_180),
    "darker": _brightness(0.8),
    "brighter": _brightness(1.25),
    "jpeg": lambda image: image,
}
"""Name -> what is done to a picture. What was compressed comes last: a gate for the picture itself opens for it."""


def _encoded(image: Image.Image, name: str) -> bytes:
    file = io.BytesIO()
    if name == "jpeg":
        image.save(file, "JPEG", quality=QUALITY)
    else:
        image.save(file, "PNG")
    return file.getvalue()
