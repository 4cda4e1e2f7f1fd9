"""Where a row says whose it is: what `--map` names, parsed, and looked up in each row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from chip.data.dicom import header_value, is_keyword
from chip.data.readers.fields import listed_columns, parse_json
from chip.data.readers.images import Images
from chip.data.readers.records_file import OWN, RecordsFile
from chip.errors import InputError, one_line

IMAGE = "image"
"""Stands for the paths of a row's images, under whatever column they are."""
FORM = (
    "give metadata.subject_id (a column), image:/p(\\d{8})/ (of the image's path, or of a column), 'a name', "
    "@table.csv:image_id:patient (a file, its column to look in, and the one to take), or dicom:PatientID"
)


class Source(Protocol):
    """Where one level is taken from."""

    @property
    def column(self) -> str | None:
        """The column of the row that it reads; None where it reads none."""

    def value(self, row: Mapping[str, Any], images: Images, where: str) -> object:
        """What it says of the row; None where it says nothing."""


@dataclass(frozen=True)
class OwnerMap:
    """Whose the rows of a file are."""

    sources: Mapping[str, Source]
    """By level; `task` and `split` can be mapped too."""
    written: Mapping[str, str]
    """The same as the user wrote it."""

    @classmethod
    def of(cls, written: Mapping[str, str], folder: Path) -> OwnerMap:
        """
        Args:
            written: level -> where it stands, such as `metadata.subject_id`.
            folder: that of the records, from which paths of tables start.

        Raises:
            InputError: a level is none, or what is written for it cannot be understood.
        """
        for level in written:
            if level not in OWN:
                raise InputError(f"no level is called so; map {', '.join(OWN)}", argument="map", value=level)
        return cls({level: _source(level, text, folder) for level, text in written.items()}, dict(written))

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(source.column for source in self.sources.values() if source.column is not None)

    def values(self, row: Mapping[str, Any], images: Images, where: str) -> dict[str, object]:
        """What each level is mapped to.

        Raises:
            InputError: the row does not say it.
        """
        values = {level: source.value(row, images, where) for level, source in self.sources.items()}
        for level, value in values.items():
            if value is None or value == "":
                column = self.sources[level].column
                known = column is None or column in row
                lacks = "" if known else f", as it has no {column!r}, only {listed_columns(row)}"
                raise InputError(
                    f"{where}: nothing there says its {level}, mapped to {self.written[level]}{lacks}; correct either"
                )
        return values


@dataclass(frozen=True)
class Name:
    """The same for all rows."""

    text: str
    column = None

    def value(self, row: Mapping[str, Any], images: Images, where: str) -> object:
        return self.text


@dataclass(frozen=True)
class Column:
    """A column, or what stands in it: `metadata.subject_id`."""

    path: str

    @property
    def column(self) -> str:
        return self.path.partition(".")[0]

    def value(self, row: Mapping[str, Any], images: Images, where: str) -> object:
        if self.path in row:
            return row[self.path]
        value: Any = row
        for key in self.path.split("."):
            if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
                value = parse_json(value, f"{where}, {self.path}")
            if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                value = value.get(key) if isinstance(value, Mapping) else None
        return value


@dataclass(frozen=True)
class Pattern:
    """What a regular expression finds in the images' paths, or in a column: its first group, else all of it."""

    of: Column
    pattern: re.Pattern[str]

    @property
    def column(self) -> str | None:
        return None if self.of.path == IMAGE else self.of.column

    def value(self, row: Mapping[str, Any], images: Images, where: str) -> object:
        texts = images.names if self.of.path == IMAGE else (self.of.value(row, images, where),)
        matches = [self.pattern.search(str(text)) for text in texts if text is not None]
        return _only({None if one is None else one[bool(one.re.groups)] for one in matches}, where)


@dataclass(frozen=True)
class Table:
    """What a table has in one column, where another has what the row has there."""

    file: Path
    key: str
    taken: str

    @property
    def column(self) -> str | None:
        return None if self.key == IMAGE else Column(self.key).column

    def value(self, row: Mapping[str, Any], images: Images, where: str) -> object:
        keys = images.names if self.key == IMAGE else (Column(self.key).value(row, images, where),)
        return _only({self._values.get(str(key)) for key in keys if key is not None}, where)

    @cached_property
    def _values(self) -> dict[str, object]:
        table = RecordsFile(self.file)
        if lacking := {self.key, self.taken} - table.columns:
            what = f"has no column {sorted(lacking)[0]!r}, only {listed_columns(table.columns)}"
            raise InputError(f"{self.file}: {what}", argument="map")
        values: dict[str, object] = {}
        for row, where in table.rows((self.key, self.taken)):
            key, value = row.get(self.key), row.get(self.taken)
            if key is not None and values.setdefault(str(key), value) != value:
                raise InputError(f"{where}: {self.taken} is {value!r} there, and was another for {key!r} before")
        return values


@dataclass(frozen=True)
class Header:
    """What the headers of the row's DICOM files say."""

    keyword: str
    column = None

    def value(self, row: Mapping[str, Any], images: Images, where: str) -> object:
        names = (name or "the image in the row" for name in images.names)
        pairs = zip(images.sources, names, strict=True)
        return _only({header_value(source, self.keyword, where, name) for source, name in pairs}, where)


def _only(values: set[Any], where: str) -> object:
    """The one value; None where there is none.

    Raises:
        InputError: there are several.
    """
    if len(values) > 1:
        listed = " and ".join(sorted("nothing" if value is None else repr(value) for value in values)[:2])
        raise InputError(f"{where}: its images are of several owners ({listed}); split the record, or map it otherwise")
    return next(iter(values), None)


def _source(level: str, text: str, folder: Path) -> Source:
    """
    Raises:
        InputError: it has none of the forms that are known.
    """
    given = f"{level}={text}"
    if len(text) > 1 and text[0] == text[-1] == "'":
        return Name(text[1:-1])
    if text.startswith("@"):
        *path, key, taken = text[1:].rsplit(":", 2)
        if not (path and path[0] and key and taken):
            raise InputError(f"a table is @FILE:COLUMN:COLUMN; {FORM}", argument="map", value=given)
        if not (folder / path[0]).is_file():
            message = f"no table {folder / path[0]}; its path starts from the folder of the records"
            raise InputError(message, argument="map", value=given)
        return Table(folder / path[0], key, taken)
    if text.startswith("dicom:"):
        keyword = text.removeprefix("dicom:")
        if not is_keyword(keyword):
            raise InputError("DICOM has no such keyword; use one such as PatientID", argument="map", value=given)
        return Header(keyword)
    if form := re.fullmatch(r"([^:]+):/(.*)/", text, re.DOTALL):
        try:
            return Pattern(Column(form[1]), re.compile(form[2]))
        except re.error as error:
            message = f"no regular expression ({one_line(error)}); correct it"
            raise InputError(message, argument="map", value=given) from error
    if not text.strip() or text != text.strip() or ":" in text:
        raise InputError(f"says not where; {FORM}", argument="map", value=given)
    return Column(text)
