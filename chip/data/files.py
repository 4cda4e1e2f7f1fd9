"""Files that are read line by line."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import IO, AnyStr

from chip.errors import InputError


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
