"""Which pictures are decoded at all: what their headers say keeps a decoder within its time and its memory."""

from __future__ import annotations

from functools import cache

from PIL import Image

from chip.data.embedded_image import ImageSource, content_of
from chip.errors import InputError

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA", "PCX")
"""Pillow's names of formats of pictures. It has others that start a program (EPS) or hold none (PDF, HDF5)."""

MOST_PIXELS = 1 << 26
"""Of a picture: in RGB 200 MB. A radiograph has up to 25 million."""

LONGEST_RATIO = 200
"""Long side by short one. A processor that scales the short side to a fixed length makes millions of pixels of a line,
and others (Qwen's) refuse it."""

MOST_SCANS = 100
"""Of a progressive JPEG. Each goes over the whole picture; what writes them makes a dozen."""

_SCAN = b"\xff\xda"


@cache
def known_formats() -> tuple[str, ...]:
    """Those that this Pillow can open: it may be built without some."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_bounds(image: Image.Image, source: ImageSource, name: str) -> None:
    """Raise `InputError` unless the picture, which is not yet decoded, is of a sane size."""
    check_size(*image.size, name)
    if image.format in ("JPEG", "MPO"):
        check_scans(content_of(source), name)


def check_size(width: int, height: int, name: str) -> None:
    """Raise `InputError` where a picture has too many pixels, or is a line."""
    if width * height > MOST_PIXELS:
        raise InputError(f"{name} has {width:,} × {height:,} pixels, more than {MOST_PIXELS:,}; scale it down")
    if max(width, height) > LONGEST_RATIO * min(width, height):
        raise InputError(f"{name} has {width:,} × {height:,} pixels, which is a line; cut or drop it")


def check_scans(content: bytes, name: str) -> None:
    """Raise `InputError` where a JPEG goes over its picture too often."""
    if content.count(_SCAN) > MOST_SCANS:
        raise InputError(f"{name} has more than {MOST_SCANS} scans; save it again")


def has_more_than_8_bits(image: Image.Image) -> bool:
    """Whether Pillow would clip its values to 0..255: a radiograph of 12 or 16 bits turns white."""
    return image.mode.startswith(("I", "F"))
