"""Cross-modal attacks: the question without its image, and with the image changed as files change on their way."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

from PIL import Image

from chip.data.embedded_image import ImageSource
from chip.data.record import Record, open_images, with_images, without_images
from chip.evaluation.attacks.base import Attack
from chip.evaluation.context import EvalContext

DEGREES = 15  # counter-clockwise
CROP = 0.8  # of each side, in the middle
QUALITY = 50  # of 95


def rotated(image: Image.Image) -> Image.Image:
    """Turned by `DEGREES`, in a frame of the same size; black comes in at the corners."""
    return image.rotate(DEGREES, resample=Image.Resampling.BILINEAR)


def cropped(image: Image.Image) -> Image.Image:
    """The middle, `CROP` of each side, enlarged to the size it was cut from."""
    width, height = image.size
    left, top = round(width * (1 - CROP) / 2), round(height * (1 - CROP) / 2)
    middle = image.crop((left, top, width - left, height - top))
    return middle.resize(image.size, Image.Resampling.BILINEAR)


def recompressed(image: Image.Image) -> Image.Image:
    """Once through JPEG."""
    return Image.open(io.BytesIO(_encoded(image, "JPEG", quality=QUALITY))).convert("RGB")


CHANGES: Mapping[str, Callable[[Image.Image], Image.Image] | None] = {
    "without image": None,
    "rotated": rotated,
    "cropped": cropped,
    "jpeg": recompressed,
}


class CrossModal(Attack):
    name = "cross-modal"
    help = "The question without its image, and with the image changed as files change on their way."
    standard = True

    def run(self, context: EvalContext) -> None:
        for change in CHANGES:
            context.score_attacked(f"{self.name}: {change}", ImageChange(change))


class ImageChange:
    """Gives records their images as one of `CHANGES` leaves it; each image is changed once."""

    def __init__(self, change: str) -> None:
        self._change = CHANGES[change]
        self._changed_images: dict[ImageSource, bytes] = {}

    def __call__(self, record: Record) -> Record | None:
        """None for a text-only record: there is nothing to change.

        Raises:
            InputError: the image cannot be read.
        """
        if record.image is None:
            return None
        if self._change is None:
            return without_images(record)
        if any(image not in self._changed_images for image in record.images):
            opened = zip(record.images, open_images(record), strict=True)
            self._changed_images |= {image: _encoded(self._change(picture), "PNG") for image, picture in opened}
        return with_images(record, tuple(self._changed_images[image] for image in record.images))


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
