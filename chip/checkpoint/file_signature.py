"""How a changed file is told from the one that was read, without reading it again."""

from __future__ import annotations

import os
from typing import BinaryIO, NamedTuple, Self


class FileSignature(NamedTuple):
    """What changes when a file is written or replaced. Who writes in place and sets the time back goes unseen."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change, in nanoseconds."""
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    @classmethod
    def of_open(cls, file: BinaryIO) -> Self:
        """Of the file that is open, whatever has taken its name meanwhile."""
        return cls.of(os.fstat(file.fileno()))
