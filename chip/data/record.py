"""Records: a question about an image, its answer, and the node of the hierarchy they belong to."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from PIL import ExifTags, Image, ImageOps

from chip.data.image_bounds import check_bounds, known_formats
from chip.errors import foreign_code

T = TypeVar("T")

LEVELS = ("institution", "patient", "study", "section")
"""From the outermost level to the innermost."""

TASKS = ("generation", "classification", "cloze")
"""What a question asks for: free text, one of the listed options, or the missing word."""

FREE_TEXT = "free text"
"""The task of a record that asks nothing: its `question` is a text as it stands, outside any chat format."""

VALIDATION = "validation"
"""The split of questions that settings are chosen by, and nothing is reported on."""

_PNG_EXIF = (b"eXIf", b"exif", b"xmp")
"""What marks the chunks of a PNG file that can hold an orientation."""

_ON_ITS_SIDE = range(5, 9)  # EXIF orientations in which width and height are each other


@dataclass(frozen=True, slots=True)
class Record:
    """One question and its answer. Two records that differ in `where` only are equal."""

    question: str
    answer: str
    path: tuple[str, ...]
    """Ids from the institution down; deeper levels may be missing at the end, never in between."""
    image: Path | bytes | None = field(repr=False)
    """A file, the encoded bytes of one, or None: text only."""
    task: str = "generation"
    """One of `TASKS`, or `FREE_TEXT`."""
    split: str = "train"
    """`train`: the model was trained on it; anything else is held out, such as `paraphrased`. `VALIDATION`: held out,
    and for choosing."""
    where: str = field(default="", compare=False)
    """For messages: `records.jsonl:12`, or `forget.parquet:row 7` (rows count from 0)."""

    @property
    def held_out(self) -> bool:
        """Whether the model never saw this very wording."""
        return self.split != "train"


def open_image(record: Record) -> Image.Image | None:
    """The record's image as RGB, fully loaded and turned as its EXIF orientation says.

    So it is in training: `transformers.image_utils.load_image` and `datasets.Image` turn it too. None for a text-only
    record.

    Raises:
        InputError: the image cannot be decoded, or is beyond what `check_bounds` lets pass.
    """
    return None if record.image is None else _inspect_image(record, record.image, _upright)


def image_size(record: Record) -> tuple[int, int]:
    """Width and height of the record's image as `open_image` gives it, from the file's header; 0 × 0 for a text-only
    record.

    Raises:
        InputError: as `open_image`.
    """
    source = record.image
    return (0, 0) if source is None else _inspect_image(record, source, lambda image: _upright_size(image, source))


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image).convert("RGB")


def _upright_size(image: Image.Image, source: Path | bytes) -> tuple[int, int]:
    if image.format == "TIFF":  # whether it is turned when it is loaded depends on its layout
        return _upright(image).size
    width, height = image.size
    if image.format == "PNG":  # may hold its EXIF behind its pixels, which would all be decoded to look for it
        content = source if isinstance(source, bytes) else source.read_bytes()
        if not any(mark in content for mark in _PNG_EXIF):
            return width, height
    on_its_side = image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
    return (height, width) if on_its_side else (width, height)


def _inspect_image(record: Record, source: Path | bytes, inspect: Callable[[Image.Image], T]) -> T:
    where, what = (
        record.where or "record",
        "the image in the row" if isinstance(source, bytes) else f"the image {source}",
    )
    with (
        foreign_code(where, f"{what} cannot be read", "replace it or drop the record"),
        Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=known_formats()) as image,
    ):
        check_bounds(image, source, f"{where}: {what}")
        return inspect(image)
