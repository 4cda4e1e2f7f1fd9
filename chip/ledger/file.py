"""The file of a ledger: whole lines under a lock, on the disk before anybody is told so.

Beside `LEDGER` lie `LEDGER.lock`; `LEDGER.head`, the last entry as the last writer knew it; and, where a writer died in
the middle of a line, `LEDGER.torn-...` with what it had written.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from chip.errors import InputError, RunError, one_line

_PATIENCE = 60  # seconds that a writer waits for others; each takes some milliseconds
_LONGEST = 1_000_000_000  # bytes; an evaluation with all attacks takes some ten thousand
_PRIVATE = 0o600
_TORN = "[0-9a-f]" * 12
"""What the name of a file with a torn line ends with: the beginning of its digest."""


@dataclass(frozen=True)
class Stored:
    """What a ledger's files hold."""

    lines: tuple[bytes, ...]
    """Whole ones, without their ends."""
    tail: bytes
    """What follows the last of them: empty, or the beginning of a line whose writer died."""
    head: bytes | None
    """Content of the `.head` file beside it; None where there is none."""
    torn: tuple[str, ...]
    """Names of the files with what former writers left in the middle of a line."""


class LedgerFile:
    """A file of lines to which several processes append."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # by whatever name: the lock lies beside the file itself
        self._head = self._beside("head")

    def exists(self) -> bool:
        """Whether there is one, or was."""
        return self.path.exists() or self._head.exists()

    def read(self) -> Stored:
        """All of it.

        Raises:
            InputError: it cannot be read.
        """
        stored = self._read()
        if not stored.tail:
            return stored
        try:
            with self.locked() as stored:  # somebody may be writing just now; who holds the lock sees no half of a line
                return stored
        except RunError:  # where no lock can be made nobody writes
            return stored

    @contextmanager
    def locked(self) -> Iterator[Stored]:
        """Keeps other writers out, and gives what the file holds. The lock goes with the process, however that ends.

        Raises:
            InputError: there is no folder for it.
            RunError: it cannot be made, or others keep it for a minute.
        """
        if not self.path.parent.is_dir():
            raise InputError(f"{self.path}: there is no folder {self.path.parent}; make it, or choose another")
        lock = FileLock(self._beside("lock"), timeout=_PATIENCE)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(f"{self.path}: others have kept it locked for {_PATIENCE} s; see who they are") from error
        except (OSError, NotImplementedError) as error:
            raise RunError(f"{self.path}: cannot be locked ({one_line(error)}); choose another place") from error
        try:
            yield self._read()
        finally:
            lock.release()

    def append(self, line: bytes) -> None:
        """Add a line, and have the disk hold it. To be called under the lock, and without a torn line at the end.

        Raises:
            RunError: the file system refuses; then nothing has been added.
        """
        new = not self.path.exists()
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY, _PRIVATE)
            try:
                self._write(descriptor, line + b"\n")
            finally:
                os.close(descriptor)
            if new:
                _flush_names(self.path.parent)
        except OSError as error:
            raise self._refused(error) from error

    def finish_line(self) -> None:
        """Add the end of a line that lacks nothing else. As `append`."""
        self.append(b"")

    def put_torn_aside(self, tail: bytes) -> Path:
        """Move what follows the last whole line into a file of its own. As `append`."""
        torn = self._beside(f"torn-{hashlib.sha256(tail).hexdigest()[:12]}")
        try:
            write_whole(torn, tail)  # first: a writer that dies here leaves it in both places
            with self.path.open("r+b") as file:
                file.truncate(self.path.stat().st_size - len(tail))
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refused(error) from error
        return torn

    def write_head(self, content: bytes) -> None:
        """Replace the file beside the ledger. As `append`."""
        try:
            write_whole(self._head, content)
        except OSError as error:
            raise self._refused(error) from error

    def _write(self, descriptor: int, content: bytes) -> None:
        """All of it, or, where the disk is full, nothing."""
        size = os.fstat(descriptor).st_size
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise

    def _read(self) -> Stored:
        try:
            head = self._head.read_bytes() if self._head.is_file() else None  # first: it never runs ahead of the ledger
            torn = self.path.parent.glob(f"{escape(self.path.name)}.torn-{_TORN}")
            if self.path.exists() and not (self.path.is_file() and self.path.stat().st_size <= _LONGEST):
                raise InputError(f"{self.path}: no ledger, but a folder, a device or a huge file; check the path")
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({one_line(error)}); check the path") from error
        *lines, tail = content.split(b"\n")
        return Stored(tuple(lines), tail, head, tuple(sorted(path.name for path in torn)))

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    def _refused(self, error: OSError) -> RunError:
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "fix that"
        return RunError(f"{self.path}: cannot be written ({one_line(error)}); {hint}, and add the entry again")


_BINARY = getattr(os, "O_BINARY", 0)  # Windows would write its own ends of lines


def write_whole(path: Path, content: bytes) -> None:
    """A file that has all of the content, or what it had before."""
    new = path.with_name(f"{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY
    with os.fdopen(os.open(new, flags, _PRIVATE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    _flush_names(path.parent)


def _flush_names(folder: Path) -> None:
    """Have the disk hold the names in a folder, where a folder can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
