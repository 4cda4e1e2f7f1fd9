"""Image files as RGB: what a decoder is given, and which way up the picture is."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, _imaging

from chip.data.dicom import decode_dicom, dicom_size, is_dicom
from chip.data.embedded_image import ImageSource, content_of, open_content
from chip.data.image_bounds import check_bounds, has_more_than_8_bits, known_formats
from chip.data.window import Window, gray
from chip.errors import InputError, foreign_code

T = TypeVar("T")

_PNG_SIGNATURE, _PNG_CHECKSUM = 8, 4  # bytes, at the file's beginning and at the end of each chunk
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_PNG_EXIF = (b"exif", b"xmp")
"""What stands in a text of a PNG file that can hold an orientation."""

_imaging.set_block_size(1 << 30)
"""A picture is one block of memory, and goes back to the system as one. Pillow's own blocks of 16 MB would stay with
the thread that has decoded it."""

_ON_ITS_SIDE = range(5, 9)  # EXIF orientations in which width and height are each other


def decode_image(source: ImageSource, window: Window | None, where: str) -> Image.Image:
    """The image as RGB, fully loaded and turned as its EXIF orientation says.

    Args:
        window: how the values of one with more than 8 bits become gray; without it a DICOM file's own is taken.
        where: whose image it is, for messages.

    Raises:
        InputError: it cannot be decoded, or is beyond what `check_bounds` lets pass.
    """
    if is_dicom(source):
        return decode_dicom(source, window, where, _called(source))
    return _inspect(source, where, lambda image: _upright(_in_8_bits(image, window, where, _called(source))))


def decoded_size(source: ImageSource, where: str) -> tuple[int, int]:
    """Width and height of the image as `decode_image` gives it, from the file's header.

    Raises:
        InputError: as `decode_image`.
    """
    if is_dicom(source):
        return dicom_size(source, where, _called(source))
    return _inspect(source, where, lambda image: _upright_size(image, source))


def header_pixels(source: ImageSource, where: str) -> int:
    """Width times height, as the header has it, before anything is decoded or held against bounds.

    Raises:
        InputError: it is no image.
    """
    if is_dicom(source):
        width, height = dicom_size(source, where, _called(source))
    else:
        with _opened(source, where, _called(source)) as image:
            width, height = image.size
    return width * height


def _in_8_bits(image: Image.Image, window: Window | None, where: str, name: str) -> Image.Image:
    """Raises `InputError` for an image of more bits without a window: Pillow would clip it, and all turn white."""
    if not has_more_than_8_bits(image):
        return image
    if window is None:
        hint = "say which of its values become gray with --window CENTER,WIDTH, or save it with 8, as in training"
        raise InputError(f"{where}: {name} has more than 8 bits a channel; {hint}")
    shown = Image.fromarray(gray(window.apply(np.asarray(image, dtype=np.float64))))
    shown.getexif().update(image.getexif())
    return shown


def _upright(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)  # no third copy, which of a large picture is a quarter of a GB
    return image.convert("RGB")


def _upright_size(image: Image.Image, source: ImageSource) -> tuple[int, int]:
    if image.format == "TIFF":  # whether it is turned when it is loaded depends on its layout
        return ImageOps.exif_transpose(image).size
    width, height = image.size
    # A PNG may hold its EXIF behind its pixels, which would all be decoded to look for it.
    if image.format == "PNG" and not _png_holds_exif(source):
        return width, height
    on_its_side = image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
    return (height, width) if on_its_side else (width, height)


def _png_holds_exif(source: ImageSource) -> bool:
    """Whether one of its chunks may hold an orientation; those of pixels are passed over."""
    with open_content(source) as file:
        file.seek(_PNG_SIGNATURE)
        while len(header := file.read(8)) == 8:
            length, kind = int.from_bytes(header[:4], "big"), header[4:]
            if kind == b"eXIf":
                return True
            if kind in _PNG_TEXT:
                text, length = file.read(length), 0
                if any(mark in text for mark in _PNG_EXIF):
                    return True
            file.seek(length + _PNG_CHECKSUM, io.SEEK_CUR)
    return False


def _called(source: ImageSource) -> str:
    return f"the image {source}" if isinstance(source, Path) else "the image in the row"


def _inspect(source: ImageSource, where: str, inspect: Callable[[Image.Image], T]) -> T:
    name = _called(source)
    with _opened(source, where, name) as image:
        check_bounds(image, source, f"{where}: {name}")
        return inspect(image)


@contextmanager
def _opened(source: ImageSource, where: str, name: str) -> Iterator[Image.Image]:
    """The image, not yet decoded; whatever Pillow raises of it in the block is told in one line."""
    with (
        foreign_code(where, f"{name} cannot be read", "replace it or drop the record"),
        Image.open(
            source if isinstance(source, Path) else io.BytesIO(content_of(source)), formats=known_formats()
        ) as image,
    ):
        yield image
