"""Images that rows hold themselves, as the encoded bytes of a file: on the disk, and not in memory."""

from __future__ import annotations

import atexit
import hashlib
import io
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any


@dataclass(frozen=True)
class EmbeddedImage:
    """The encoded bytes of an image, in a file that has no name and goes with the process.

    Two are equal where their bytes are, and then lie there once.
    """

    digest: bytes
    """SHA-256 of the bytes."""
    size: int = field(compare=False)
    """Bytes."""
    _begin: int = field(compare=False, repr=False)

    @staticmethod
    def of(content: bytes) -> EmbeddedImage:
        """Raises `OSError` where the disk of temporary files has no room."""
        return _spool().add(content)

    def read_bytes(self) -> bytes:
        return _spool().read(self._begin, self.size)

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddedImage.of, (self.read_bytes(),)  # another process has a file of its own


ImageSource = Path | bytes | EmbeddedImage
"""A file, or the encoded bytes of one."""


def content_of(source: ImageSource) -> bytes:
    """The encoded bytes."""
    return source if isinstance(source, bytes) else source.read_bytes()


def open_content(source: ImageSource) -> io.BufferedReader | io.BytesIO:
    """The encoded bytes, to be read from their beginning."""
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(content_of(source))


def content_digest(source: ImageSource) -> bytes:
    """SHA-256 of the encoded bytes."""
    if isinstance(source, EmbeddedImage):
        return source.digest
    with open_content(source) as content:
        return hashlib.file_digest(content, "sha256").digest()


def encoded_size(source: ImageSource) -> int:
    """Of the encoded bytes."""
    if isinstance(source, bytes):
        return len(source)
    return source.stat().st_size if isinstance(source, Path) else source.size


class _Spool:
    def __init__(self) -> None:
        self._file, self._end, self._lock = tempfile.TemporaryFile(), 0, Lock()  # noqa: SIM115 - until the process ends
        self._known: dict[bytes, EmbeddedImage] = {}
        atexit.register(self._file.close)

    def add(self, content: bytes) -> EmbeddedImage:
        digest = hashlib.sha256(content).digest()
        with self._lock:
            if (image := self._known.get(digest)) is None:
                self._file.seek(self._end)
                self._file.write(content)
                self._file.flush()
                image = self._known[digest] = EmbeddedImage(digest, len(content), self._end)
                self._end += len(content)
            return image

    def read(self, begin: int, size: int) -> bytes:
        with self._lock:
            self._file.seek(begin)
            return self._file.read(size)


@cache
def _spool() -> _Spool:
    return _Spool()
