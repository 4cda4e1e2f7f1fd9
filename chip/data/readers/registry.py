"""The readers by name; which of them takes a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from chip.data.readers.records_file import RecordsFile
from chip.data.record import Record
from chip.errors import InputError
from chip.plugins import load_plugins


class Reader(Protocol):
    """One format of records."""

    def matches(self, file: RecordsFile) -> bool:
        """Whether the file, or folder, is of this format, by its path and its columns."""

    def read(self, file: RecordsFile) -> Iterator[Record]:
        """Its records, in their order.

        Raises:
            InputError: one of them is not as it should be; the message begins with its `where`.
        """


READERS: dict[str, Reader] = {}
"""Name -> reader. The one that was registered last is asked first."""


def register_reader(name: str, reader: Reader) -> None:
    """Make a format known.

    Raises:
        InputError: another reader has this name.
    """
    if name in READERS:
        raise InputError("a reader of this name is registered already; choose another", argument="name", value=name)
    READERS[name] = reader


def find_reader(file: RecordsFile) -> Reader | None:
    """The reader that takes this file, those from outside first; None where there is none.

    Raises:
        InputError: the file is broken, or a plugin cannot be imported.
    """
    load_plugins()
    return next((reader for reader in reversed(READERS.values()) if reader.matches(file)), None)
