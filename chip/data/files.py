"""What can be read as a file at all."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import IO, AnyStr

from chip.errors import InputError


def check_readable(path: Path) -> None:
    """Refuse at once what reading would wait for, or never come to the end of.

    Raises:
        OSError: it is a pipe, a device or a socket; or it is not there.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "a pipe or a device, and no file")


def bounded_lines(file: IO[AnyStr], name: str, longest: int, hint: str) -> Iterator[AnyStr]:
    """The lines, none of which is read beyond what a record can be.

    Args:
        longest: bytes of a line; of a file of text characters.

    Raises:
        InputError: a line is longer; `hint` says what to do.
    """
    for number in count(1):
        line = file.readline(longest + 1)
        if len(line) > longest:
            unit = "bytes" if isinstance(line, bytes) else "characters"
            raise InputError(f"{name}:{number}: has more than {longest:,} {unit}; {hint}")
        if not line:
            return
        yield line
