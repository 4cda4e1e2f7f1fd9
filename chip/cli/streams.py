"""stdout and stderr, whatever they are: closed, full, a pipe that nobody reads, of a small alphabet."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from chip.errors import ChipError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class StreamError(ChipError):
    """Results cannot be shown. What the command has done stands."""

    exit_code = 2


class _Stream(io.RawIOBase):
    """A descriptor to write to, which never fails twice.

    Who has closed the other end of a pipe wants no more, as `head` does: the command goes on, and ends as it would.
    """

    def __init__(self, descriptor: int, name: str | None) -> None:
        """
        Args:
            name: what an error calls it; None: it fails in silence.
        """
        self._descriptor, self._name, self._open = descriptor, name, True

    def write(self, data: ReadableBuffer) -> int:
        size = memoryview(data).nbytes
        try:
            return os.write(self._descriptor, data) if self._open else size
        except OSError as error:
            self._open = False
            if self._name is None or isinstance(error, BrokenPipeError):
                return size
            raise StreamError(f"{self._name}: cannot be written to ({error.strerror}); send it elsewhere") from error

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


def prepare_streams() -> None:
    """Make stdout and stderr take any text, without a traceback; what tests or callers have put there stays."""
    for descriptor in (0, 1, 2):
        _open_where_closed(descriptor)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _wrapped(sys.stdout, 1, "stdout")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _wrapped(sys.stderr, 2, None)


def _open_where_closed(descriptor: int) -> None:
    """Else the next file that is opened, a shard say, would take its number, and get what is printed."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # the lowest free number


def _wrapped(stream: TextIO | None, descriptor: int, name: str | None) -> TextIO:
    """A character that the encoding lacks is written as its code."""
    raw = _Stream(descriptor, name)
    encoding = "utf-8" if stream is None else stream.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.isatty())
