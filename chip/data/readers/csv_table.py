"""Tables of text with commas or tabs between the fields; an empty field is missing."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chip.data.files import bounded_lines
from chip.errors import InputError, one_line

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Suffix -> what stands between two fields."""

LONGEST_FIELD = 1 << 26
"""Characters of a field, and of a line, at most."""


def csv_header(path: Path) -> list[str]:
    """The names of the columns, as the first line has them.

    Raises:
        InputError: there is none, two are called alike, or the file is no table.
    """
    for fields, _ in _lines(path):
        if twice := sorted({name for name in fields if fields.count(name) > 1}):
            raise InputError(f"{path}: two columns are called {twice[0]!r}; rename one")
        return fields
    return []


def csv_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows, each with the line that it begins in, counted from 1.

    Raises:
        InputError: a row has more or fewer fields than the first line, or the file is no table.
    """
    lines = _lines(path)
    names, _ = next(lines, ([], ""))
    for fields, where in lines:
        if len(fields) != len(names):
            raise InputError(f"{where}: has {len(fields)} fields, and the first line names {len(names)} columns")
        yield {name: field or None for name, field in zip(names, fields, strict=True)}, where


def _lines(path: Path) -> Iterator[tuple[list[str], str]]:
    """The lines that hold something, as fields."""
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = bounded_lines(file, path.name, LONGEST_FIELD, "write one record a row")
        reader = csv.reader(lines, delimiter=DELIMITERS[path.suffix.lower()], strict=True)
        start = 1
        while True:
            where = f"{path.name}:{start}"
            try:
                fields = next(reader, None)
            except UnicodeDecodeError as error:
                raise InputError(f"{where}: not UTF-8 from here on; save the file as UTF-8") from error
            except csv.Error as error:
                raise InputError(f"{where}: no row of a table ({one_line(error)}); correct it") from error
            if fields is None:
                return
            if fields:
                yield fields, where
            start = reader.line_num + 1
