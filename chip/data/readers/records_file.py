"""A file of records as a reader sees it: its path and, where it is a table, its columns and rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cached_property
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from chip.data.readers.fields import parse_json, parse_object
from chip.errors import InputError, one_line

Row = tuple[dict[str, Any], str]
"""What a row holds by column, and where it stands, for messages."""

JSON_LINES = (".jsonl", ".json")
PARQUET = ".parquet"
_ROWS = 64  # of a parquet file, at once
_LARGEST_ARRAY = 1 << 30  # bytes of a JSON array, which is read as a whole
_LONGEST_LINE = 1 << 26  # bytes of a record
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+")  # what pandas leaves beside the columns


class RecordsFile:
    """A path, and what is known of the table there: JSON lines or parquet. Anything else has no columns and no rows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def kind(self) -> str:
        """The suffix in lower case: `.jsonl`, `.parquet`; empty for a folder."""
        return "" if self.path.is_dir() else self.path.suffix.lower()

    @cached_property
    def columns(self) -> frozenset[str]:
        """Names of a parquet file's columns, an index of pandas apart, or all keys that the JSON lines hold.

        Raises:
            InputError: the file is broken.
        """
        if self.kind in JSON_LINES:
            return frozenset(key for entry, _ in self._lines for key in entry)
        names = self._parquet_columns() if self.kind == PARQUET else []
        return frozenset(name for name in names if not _INDEX.fullmatch(name))

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """The rows, each with its place: `records.jsonl:12` counts lines from 1, `a.parquet:row 7` rows from 0.

        Args:
            columns: those of a parquet file that are read, where it has them; by default all.

        Raises:
            InputError: the file is broken.
        """
        if self.kind in JSON_LINES:
            yield from self._lines
        elif self.kind == PARQUET:
            yield from self._parquet_rows(self.columns if columns is None else columns)

    @cached_property
    def _lines(self) -> list[Row]:
        name = self.path.name
        if self.kind == ".json" and (entries := self._array()) is not None:
            return [(parse_object(entry, where), where) for entry, where in entries]
        # Read as bytes: text mode would lose the line number of a byte that is not UTF-8.
        with self.path.open("rb") as lines:
            return [
                (_json_line(line, f"{name}:{number}"), f"{name}:{number}")
                for number, line in enumerate(_bounded(lines, name), start=1)
                if line.strip()
            ]

    def _array(self) -> list[tuple[Any, str]] | None:
        """What a JSON array holds, and where, counted from 0; None: the file does not begin as one."""
        if self.path.stat().st_size > _LARGEST_ARRAY:
            raise InputError(f"{self.path}: has more than {_LARGEST_ARRAY:,} bytes; write one record a line, as .jsonl")
        text = _text(self.path.read_bytes(), self.path.name)
        if not text.lstrip().startswith("["):
            return None
        entries = parse_json(text, self.path.name)
        assert isinstance(entries, list)  # it begins as one
        return [(entry, f"{self.path.name}:item {number}") for number, entry in enumerate(entries)]

    def _parquet_columns(self) -> list[str]:
        pa, pq = _pyarrow()
        try:
            with pq.ParquetFile(self.path) as parquet:
                names: list[str] = parquet.schema_arrow.names
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise self._not_whole(error) from error
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{self.path}: two columns are called {twice[0]!r}; rename one")
        return names

    def _parquet_rows(self, columns: Collection[str]) -> Iterator[Row]:
        pa, pq = _pyarrow()
        number = 0
        try:
            with pq.ParquetFile(self.path) as parquet:
                for batch in parquet.iter_batches(batch_size=_ROWS, columns=sorted(columns)):
                    for row in batch.to_pylist():
                        yield row, f"{self.path.name}:row {number}"
                        number += 1
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise self._not_whole(error) from error

    def _not_whole(self, error: Exception) -> InputError:
        return InputError(f"{self.path}: not a whole parquet file ({one_line(error)}); fetch it again")


def _bounded(lines: BinaryIO, name: str) -> Iterator[bytes]:
    """The lines, none of which is read beyond what a record can be."""
    for number in count(1):
        line = lines.readline(_LONGEST_LINE + 1)
        if len(line) > _LONGEST_LINE:
            raise InputError(f"{name}:{number}: has more than {_LONGEST_LINE:,} bytes; write one record a line")
        if not line:
            return
        yield line


def _json_line(line: bytes, where: str) -> dict[str, Any]:
    return parse_object(parse_json(_text(line, where), where), where)


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8; save the file as UTF-8") from error


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError("reading parquet needs pyarrow: pip install 'chip-unlearning[parquet]'") from error
    return pa, pq
