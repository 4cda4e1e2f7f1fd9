"""Tensors in their files, or merged with an adapter, compared as bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO, FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from chip.checkpoint.header import TensorEntry
from chip.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Source = FileIO | BytesIO
"""That bytes are read from."""
_BLOCK = 1 << 20  # bytes compared at once


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in its file."""

    path: Path
    entry: TensorEntry

    def open(self) -> Source:
        """The file, to read from `entry.begin` on."""
        return self.path.open("rb", buffering=0)

    def read_into(self, buffer: memoryview, file: Source) -> None:
        """Fill `buffer` (bytes) from where the open `file` of this tensor stands.

        Raises:
            InputError: the file ends before.
        """
        if file.readinto(buffer) != len(buffer):
            raise InputError(f"{self.path}: ends inside tensor {self.entry.name!r}; it changed meanwhile, try again")


@dataclass(frozen=True, slots=True)
class MergedTensor(StoredTensor):
    """A tensor that an adapter changes: what the merged model's file would hold of it."""

    merge: Callable[[], Tensor]
    """In the dtype of `entry`, which begins at 0."""

    def open(self) -> Source:
        import torch

        return BytesIO(self.merge().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def same_bytes(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors of one dtype and shape are stored as the same bytes. Reads blocks; safe in threads.

    Raises:
        InputError: a file has become shorter.
    """
    with a.open() as file_a, b.open() as file_b:
        if a.entry.begin == b.entry.begin and _are_one(file_a, file_b):
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


def _are_one(a: Source, b: Source) -> bool:
    files = isinstance(a, FileIO) and isinstance(b, FileIO)
    return files and os.path.samestat(os.fstat(a.fileno()), os.fstat(b.fileno()))
