"""Tensors in their files, compared as bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from chip.checkpoint.header import TensorEntry
from chip.errors import InputError

_BLOCK = 1 << 20  # bytes compared at once


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in its file."""

    path: Path
    entry: TensorEntry

    def read_into(self, buffer: memoryview, file: FileIO) -> None:
        """Fill `buffer` (bytes) from where the open `file` of this tensor stands.

        Raises:
            InputError: the file ends before.
        """
        if file.readinto(buffer) != len(buffer):
            raise InputError(f"{self.path}: ends inside tensor {self.entry.name!r}; it changed meanwhile, try again")


def same_bytes(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors of one dtype and shape are stored as the same bytes. Reads blocks; safe in threads.

    Raises:
        InputError: a file has become shorter.
    """
    with a.path.open("rb", buffering=0) as file_a, b.path.open("rb", buffering=0) as file_b:
        if a.entry.begin == b.entry.begin and os.path.samestat(os.fstat(file_a.fileno()), os.fstat(file_b.fileno())):
            return True  # one file under two names, as where a copy was linked
        file_a.seek(a.entry.begin)
        file_b.seek(b.entry.begin)
        size = a.entry.end - a.entry.begin
        block_a, block_b = bytearray(min(_BLOCK, size)), bytearray(min(_BLOCK, size))
        for begin in range(0, size, _BLOCK):
            length = min(_BLOCK, size - begin)
            a.read_into(memoryview(block_a)[:length], file_a)
            b.read_into(memoryview(block_b)[:length], file_b)
            if block_a != block_b:  # what a last, shorter block leaves of the one before was equal
                return False
        return True
