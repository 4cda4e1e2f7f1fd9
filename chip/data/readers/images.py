"""The images of a row: paths, encoded bytes, what `datasets` stores, and what stands in a message."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip.data.embedded_image import ImageSource
from chip.data.readers.fields import image_file, parse_json
from chip.errors import InputError

_ADDRESSES = ("http://", "https://", "s3://", "gs://", "hf://")


@dataclass(frozen=True)
class Images:
    """Images in their order, and what each is called in the row."""

    sources: tuple[ImageSource, ...] = ()
    names: tuple[str, ...] = ()
    """Their paths as the row has them; empty for one that is bytes alone."""

    def __add__(self, other: Images) -> Images:
        return Images(self.sources + other.sources, self.names + other.names)


NO_IMAGES = Images()


def read_images(value: object, folder: Path, where: str) -> Images:
    """An image, or a list of them: each a path in `folder`, bytes, or a mapping with `bytes` or `path`.

    Raises:
        InputError: one of them is none of these, or there is no such file.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):  # a list in a cell of a CSV file
        value = parse_json(value, where)
    if value == []:
        raise InputError(f"{where}: image must be a path, and is an empty list; leave it out where there is none")
    images = Images()
    for each in value if isinstance(value, list) else [value]:
        images += _image(each, folder, where)
    return images


def _image(value: Any, folder: Path, where: str) -> Images:
    if isinstance(value, dict):  # as `datasets` stores an image, without decoding it
        name = value.get("path")
        if value.get("bytes") is None:
            return _image(name, folder, where)
        if not isinstance(value["bytes"], bytes):
            raise InputError(f"{where}: bytes of an image must be bytes, and are {type(value['bytes']).__name__}")
        return Images((value["bytes"],), (name if isinstance(name, str) else "",))
    if isinstance(value, bytes):
        return Images((value,), ("",))
    if isinstance(value, str) and value.startswith("data:"):
        return Images((_data(value.partition(",")[2], where),), ("",))
    if isinstance(value, str) and value.startswith(_ADDRESSES):
        raise InputError(f"{where}: the image {value} is an address; fetch it, and give the file's path")
    path = value.removeprefix("file://") if isinstance(value, str) else value
    return Images((image_file(path, folder, where),), (path,))


def part_image(part: dict[str, Any], where: str) -> object:
    """What the part of a message says its image is, as `read_images` takes it; None where it only marks its place.

    It is under `image`, `path`, `url` or `base64`, as in transformers, or under `image_url`, as in OpenAI's format.
    """
    if isinstance(part.get("base64"), str):
        return _data(part["base64"], where)
    address = part.get("image_url")
    given = [part.get(key) for key in ("image", "path", "url", "bytes")]
    given.append(address.get("url") if isinstance(address, dict) else address)
    return next((each for each in given if each is not None), None)


def _data(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where}: an image in the text is not base64; give the file's path") from error
