"""Large images, decoded only where their pixels are asked for, and what image processors made of them."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import wraps
from threading import Lock
from typing import Any

from PIL import Image

MOST_BYTES = 1 << 28
"""Of all results that stay."""


class LazyImage(Image.Image):
    """An RGB image that is decoded when its pixels are asked for, as those that `PIL.Image.open` gives."""

    def __init__(self, key: object, size: tuple[int, int], decode: Callable[[], Image.Image]) -> None:
        """
        Args:
            key: two images with one key have the same pixels; can be pickled.
            size: width and height.
        """
        super().__init__()
        self.key = key
        self._mode, self._size = "RGB", size
        self._decode: Callable[[], Image.Image] | None = decode

    def load(self) -> Image.core.PixelAccess | None:
        if self._decode is not None:
            image, self._decode = self._decode(), None
            self.im, self._size, self.readonly = (
                image.im,
                image.size,
                1,
            )  # others have the same pixels: not to be changed
        return super().load()


def remember_results(image_processor: Any) -> None:
    """Have an image processor of transformers' give what it made of a `LazyImage` again, without decoding it.

    What it makes depends on all images of a call and on its options: both must be the same, and in the same lists. The
    first results stay, and not the latest, as each pass goes over the same records from their beginning.
    """
    image_processor.preprocess = _remembering(image_processor.preprocess)


def _remembering(preprocess: Callable[..., Any]) -> Callable[..., Any]:
    kept: dict[bytes, Any] = {}
    sizes: list[int] = []
    lock = Lock()  # batches are made ahead in a thread

    @wraps(preprocess)
    def remembering(images: Any, *args: Any, **kwargs: Any) -> Any:
        has_large = any(isinstance(image, LazyImage) for image in _leaves(images))
        key = _key((images, args, kwargs)) if has_large else None
        if key in kept:
            return deepcopy(kept[key])  # processors take parts out of what they get
        result = preprocess(images, *args, **kwargs)
        with lock:
            if key is not None and sum(sizes) + (size := _bytes(result)) <= MOST_BYTES:
                kept[key] = deepcopy(result)
                sizes.append(size)
        return result

    return remembering


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> object:
        return obj.key if isinstance(obj, LazyImage) else None


def _key(call: object) -> bytes | None:
    """SHA-256 of what a call is given, by value; None where something cannot be pickled."""
    written = io.BytesIO()
    try:
        _Pickler(written).dump(call)
    except (pickle.PicklingError, AttributeError, TypeError):  # what pickle raises of functions, locks and the like
        return None
    return hashlib.sha256(written.getbuffer()).digest()


def _leaves(images: Any) -> Iterator[Any]:
    """What stands in nested lists."""
    if isinstance(images, (list, tuple)):
        for image in images:
            yield from _leaves(image)
    else:
        yield images


def _bytes(result: Any) -> int:
    """Of the tensors and arrays in a result."""
    if isinstance(result, Mapping):
        return sum(map(_bytes, result.values()))
    return sum(getattr(leaf, "nbytes", 0) for leaf in _leaves(result))
