"""A file of records as a reader sees it: its path and, where it is a table, its columns and rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any, Protocol

from chip.data.embedded_image import EmbeddedImage
from chip.data.files import bounded_lines
from chip.data.readers.arrow_tables import SAVED, parquet_columns, parquet_rows, saved_columns, saved_rows
from chip.data.readers.csv_table import DELIMITERS, csv_header, csv_rows
from chip.data.readers.fields import decode_text, node_path, parse_json, parse_object, parse_split, parse_task
from chip.data.readers.images import NO_IMAGES, Images
from chip.data.record import LEVELS, Record, with_images
from chip.errors import InputError

OWN = (*LEVELS, "task", "split")
"""Keys that a row of any format may have: whose a record is, what it asks for, whether it was trained on."""

Row = tuple[dict[str, Any], str]
"""What a row holds by column, and where it stands, for messages."""

JSON_LINES = (".jsonl", ".json")
PARQUET = ".parquet"
ARROW = ".arrow"
_LARGEST_ARRAY = 1 << 30  # bytes of a JSON array, which is read as a whole
_LONGEST_LINE = 1 << 26  # bytes of a record
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+|")  # what pandas leaves beside the columns


class Owners(Protocol):
    """Where a row says whose it is, as the user has it."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns that it reads."""

    def values(self, row: Mapping[str, Any], images: Images, where: str) -> dict[str, object]:
        """Level, task or split -> what the row says of it.

        Raises:
            InputError: it does not say it.
        """


class RecordsFile:
    """A path, and what is known of the table there: JSON, CSV, parquet, Arrow, or a dataset that `datasets` has saved.

    Anything else has no columns and no rows.
    """

    def __init__(
        self, path: Path, images: Path | None = None, owners: Owners | None = None, split: str = "train"
    ) -> None:
        """
        Args:
            images: folder that paths of images start from; by default that of the file.
            owners: where rows say whose they are, beside what a format has for it.
            split: of records that do not say theirs.
        """
        self.path, self.owners, self.split, self._images = path, owners, split, images
        self.asked_owners = False
        """Whether a reader has asked whose a row is."""
        self._paths: dict[tuple[object, ...], tuple[str, ...]] = {}
        """Paths of nodes by the ids that rows had for them: checked once, and one object for all records of a node."""

    @property
    def mapped_columns(self) -> frozenset[str]:
        """Columns that a map reads."""
        return frozenset() if self.owners is None else self.owners.columns

    def within(self, path: Path, split: str) -> RecordsFile:
        """A file of this folder, to be read as the folder is."""
        return RecordsFile(path, self._images, self.owners, split)

    @property
    def images(self) -> Path:
        """The folder that paths of images start from."""
        return self.path.parent if self._images is None else self._images

    @property
    def kind(self) -> str:
        """The suffix in lower case: `.jsonl`, `.parquet`; `.arrow` for a saved dataset, empty for another folder."""
        if self.path.is_dir():
            return ARROW if all((self.path / name).is_file() for name in SAVED) else ""
        return self.path.suffix.lower()

    @cached_property
    def columns(self) -> frozenset[str]:
        """Names of a table's columns, an index of pandas apart, or all keys that the JSON lines hold.

        Raises:
            InputError: the file is broken.
        """
        if self.kind in JSON_LINES:
            return frozenset(chain.from_iterable(entry for entry, _ in self._json_rows()))
        return frozenset(name for name in self._names() if not _INDEX.fullmatch(name))

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """The rows, each with its place: `a.jsonl:12` counts lines from 1, as in CSV; `a.parquet:row 7` rows from 0.

        Args:
            columns: those of a table that are read, where it has them; by default all.

        Raises:
            InputError: the file is broken.
        """
        if self.kind in JSON_LINES:
            yield from self._json_rows()
            return
        chosen = self.columns if columns is None else columns
        wanted = [name for name in self._names() if name in chosen]  # in the file's order, whatever that of a set
        if self.kind in DELIMITERS:
            yield from (({key: row[key] for key in wanted}, where) for row, where in csv_rows(self.path))
        elif self.kind == PARQUET:
            yield from parquet_rows(self.path, wanted)
        elif self.kind == ARROW:
            yield from saved_rows(self.path, wanted)

    def placed(
        self, record: Record, ids: Mapping[str, object], row: Mapping[str, Any], images: Images = NO_IMAGES
    ) -> Record:
        """The record at its place in the hierarchy. Every reader ends with it, so that a map holds for all.

        Args:
            record: without its path.
            ids: level -> id, as the format has it; other keys are passed over.
            row: for the map, which goes before `ids`, and before the task and the split of the record.
            images: those of the record, for a map of their paths or headers.

        Raises:
            InputError: it belongs nowhere, or the row does not say what is mapped.
        """
        self.asked_owners = True
        where = record.where
        mapped = {} if self.owners is None else self.owners.values(row, images, where)
        known = {level: ids[level] for level in LEVELS if ids.get(level) is not None}
        path = self._path(known | mapped if mapped else known, where)
        task = parse_task(mapped["task"], where) if "task" in mapped else record.task
        split = parse_split(mapped["split"], where) if "split" in mapped else record.split
        record = record.at(path, task, split)
        if any(isinstance(image, bytes) for image in record.images):
            stored = [EmbeddedImage.of(image) if isinstance(image, bytes) else image for image in record.images]
            record = with_images(record, tuple(stored))
        return record

    def _path(self, ids: Mapping[str, object], where: str) -> tuple[str, ...]:
        """As `node_path`."""
        key = tuple(ids.get(level) for level in LEVELS)
        if not all(type(value) in (str, NoneType) for value in key):
            return node_path(ids, where)
        path = self._paths.get(key)
        if path is None:
            path = self._paths[key] = node_path(ids, where)
        return path

    def _names(self) -> list[str]:
        match self.kind:
            case kind if kind in DELIMITERS:
                return csv_header(self.path)
            case ".parquet":
                names = parquet_columns(self.path)
            case ".arrow":
                names = saved_columns(self.path)
            case _:
                return []
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{self.path}: two columns are called {twice[0]!r}; rename one")
        return names

    def _json_rows(self) -> Iterator[Row]:
        """One after the other: all lines together would take several times what the records do."""
        name = self.path.name
        if self.kind == ".json" and self._array is not None:
            yield from ((parse_object(entry, where), where) for entry, where in self._array)
            return
        # Read as bytes: text mode would lose the line number of a byte that is not UTF-8.
        with self.path.open("rb") as file:
            lines = bounded_lines(file, name, _LONGEST_LINE, "write one record a line")
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{name}:{number}"
                    yield _json_line(line, where), where

    @cached_property
    def _array(self) -> list[tuple[Any, str]] | None:
        """What a JSON array holds, and where, counted from 0; None: the file does not begin as one."""
        if self.path.stat().st_size > _LARGEST_ARRAY:
            raise InputError(f"{self.path}: has more than {_LARGEST_ARRAY:,} bytes; write one record a line, as .jsonl")
        text = decode_text(self.path.read_bytes(), self.path.name)
        if text.lstrip().partition("\n")[0].strip() == "{":
            what = "one object over several lines; give a list of records, or one record a line"
            raise InputError(f"{self.path}: {what}")
        if not text.lstrip().startswith("["):
            return None
        entries = parse_json(text, self.path.name)
        assert isinstance(entries, list)  # it begins as one
        return [(entry, f"{self.path.name}:item {number}") for number, entry in enumerate(entries)]


def _json_line(line: bytes, where: str) -> dict[str, Any]:
    return parse_object(parse_json(decode_text(line, where), where), where)
