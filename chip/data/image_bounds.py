"""Which pictures are decoded at all: what their headers say keeps a decoder within its time and its memory."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image

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


def check_bounds(image: Image.Image, source: Path | bytes, name: str) -> None:
    """Raise `InputError` unless the picture, which is not yet decoded, is of a sane size and has 8 bits a channel."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise InputError(f"{name} has {width:,} × {height:,} pixels, more than {MOST_PIXELS:,}; scale it down")
    if max(width, height) > LONGEST_RATIO * min(width, height):
        raise InputError(f"{name} has {width:,} × {height:,} pixels, which is a line; cut or drop it")
    # Pillow would clip these to 0..255: a radiograph of 12 or 16 bits turns white.
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{name} has more than 8 bits a channel; save it with 8, as in training")
    if image.format in ("JPEG", "MPO"):
        content = source if isinstance(source, bytes) else source.read_bytes()
        if content.count(_SCAN) > MOST_SCANS:
            raise InputError(f"{name} has more than {MOST_SCANS} scans; save it again")
