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
"""Of all results that stay in this process."""


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

    def load(self) -> Any:
        if self._decode is not None:
            image, self._decode = self._decode(), None
            self.im, self._size = image.im, image.size
            self.readonly = 1  # others share the pixels: they are copied before a change
        return super().load()


class Results:
    """What image processors made of large images.

    The first ones stay, and not the latest, as each pass goes over the same records from their beginning.
    """

    def __init__(self) -> None:
        self._kept: dict[bytes, Any] = {}
        self._bytes = 0
        self._lock = Lock()  # batches are made ahead in a thread

    def get(self, key: bytes | None) -> Any:
        """A copy, as processors take parts out of what they get; None where nothing is there."""
        return deepcopy(self._kept.get(key)) if key is not None else None

    def add(self, key: bytes | None, result: Any) -> None:
        size = _bytes(result)
        with self._lock:
            if key is not None and key not in self._kept and self._bytes + size <= MOST_BYTES:
                self._kept[key] = deepcopy(result)
                self._bytes += size


_RESULTS = Results()


def remember_results(image_processor: Any, results: Results = _RESULTS) -> None:
    """Have an image processor of transformers' give what it made of a `LazyImage` again, without decoding it.

    What it makes depends on its settings, on all images of a call and on the call's options: all must be the same, and
    the images in the same lists. Another processor of the same settings knows the results too.
    """
    if (settings := _key(image_processor)) is not None:
        known = type(image_processor)  # of a class of its own, as what stands in the object itself is saved with it
        own = {"preprocess": _remembering(known.preprocess, settings, results), "__module__": known.__module__}
        image_processor.__class__ = type(known.__name__, (known,), own)


def _remembering(preprocess: Callable[..., Any], settings: bytes, results: Results) -> Callable[..., Any]:
    @wraps(preprocess)
    def remembering(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(image, LazyImage) for image in _leaves(images)):
            return preprocess(self, images, *args, **kwargs)
        key = _key((settings, images, args, kwargs))
        if (known := results.get(key)) is not None:
            return known
        result = preprocess(self, images, *args, **kwargs)
        results.add(key, result)
        return result

    return remembering


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> object:
        return obj.key if isinstance(obj, LazyImage) else None


def _key(given: object) -> bytes | None:
    """SHA-256 of something by its value; None where it cannot be pickled."""
    written = io.BytesIO()
    try:
        _Pickler(written).dump(given)
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
