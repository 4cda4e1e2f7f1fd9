"""What the fields of a row may hold. Each function raises `InputError` in one line that begins with `where`."""

from __future__ import annotations

import json
import os
import re
import unicodedata
import warnings
from codecs import BOM_UTF8
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from chip.data.record import LEVELS, TASKS, VALIDATION
from chip.errors import ChipWarning, InputError, one_line, printable

_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Unicode categories of characters that show nothing: controls, spaces, marks such as a zero-width space."""

_MOST_NAMES, _LONGEST_NAME = 20, 60  # of columns, in a message

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")

_SPLITS = {"train": ("train", "training", "trained"), VALIDATION: ("validation", "valid", "val")}
"""Splits that mean something -> how others call them."""


def parse_json(text: object, where: str) -> object:
    if not isinstance(text, str):
        raise InputError(f"{where}: must hold JSON text, and holds {type(text).__name__}")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} at column {error.colno}; correct it") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise InputError(f"{where}: not usable JSON ({one_line(error)}); correct it") from error


def decode_text(content: bytes, where: str) -> str:
    try:
        return content.removeprefix(BOM_UTF8).decode()  # far faster than utf-8-sig
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8; save the file as UTF-8") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return entry


_DECODER = json.JSONDecoder(object_pairs_hook=_each_once)  # once: it costs as much as a line


def parse_object(entry: object, where: str) -> dict[str, Any]:
    """The entry without its nulls: a null counts as missing everywhere."""
    if not isinstance(entry, dict):
        raise InputError(f'{where}: must be a JSON object, such as {{"question": ..., "answer": ...}}')
    return {key: value for key, value in entry.items() if value is not None} if None in entry.values() else entry


def parse_text(value: object, name: str, where: str) -> str:
    """The field `name`, a string that is not empty."""
    if not isinstance(value, str) or not _shows(value):
        raise InputError(f"{where}: {name} must be a string that is not empty")
    if not value.isascii() and _HALF_CHARACTER.search(value):  # no tokenizer takes it, nor any file
        raise InputError(f"{where}: {name} holds half a character ({value!a}); correct it")
    return value


def _shows(text: str) -> bool:
    """Whether there is anything to see in it."""
    return text[:1].isalnum() or not all(unicodedata.category(each) in _UNSEEN for each in text)


def parse_id(value: object, level: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip() or "/" in value:
        raise InputError(f"{where}: {level} {value!r} is not an id; use a string that is not empty, without '/'")
    if value != value.strip():  # would be another node than the one without
        raise InputError(f"{where}: {level} {value!r} begins or ends with a space; take it out")
    return parse_text(value, level, where)


def node_path(ids: Mapping[str, object], where: str) -> tuple[str, ...]:
    """The path of a node, by the ids of its levels: no level may be missing above another."""
    present = [level for level in LEVELS if level in ids]
    if not present:
        raise InputError(f"{where}: belongs nowhere; add at least an institution, or map it (institution=COLUMN)")
    for level in LEVELS[: LEVELS.index(present[-1])]:
        if level not in ids:
            raise InputError(f"{where}: has a {present[-1]} but no {level}; add the {level} it belongs to, or map it")
    return tuple(parse_id(ids[level], level, where) for level in present)


def parse_task(value: object, where: str) -> str:
    task = parse_text(value, "task", where)
    if task not in TASKS:
        raise InputError(f"{where}: unknown task {task!r}; use {', '.join(TASKS)}")
    return task


def parse_split(value: object, where: str) -> str:
    """`train` must be written so: any other word would hold the record out."""
    split = parse_text(value, "split", where)
    for meant, words in _SPLITS.items():
        if split != meant and split.strip().casefold() in words:
            raise InputError(f"{where}: no split is called {split!r}; did you mean {meant}?")
    return split


def image_file(name: object, folder: Path, where: str) -> Path:
    """The image file of this name, relative to the folder of the records file."""
    file = folder / parse_text(name, "image", where)
    # Not Path.is_file(): before Python 3.14 it raises where a name is too long to be one.
    if not os.path.isfile(file):  # noqa: PTH113
        raise InputError(f"{where}: no image file {file}; its path is relative to the records file")
    return file


def encoded_image(value: object, where: str) -> bytes | None:
    """The encoded bytes of a parquet file's image: bytes, or a struct that holds them as `datasets` stores images."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is not None and not isinstance(value, bytes):
        raise InputError(f"{where}: the column image must hold encoded bytes, or be null")
    return value


def listed_columns(names: Collection[str]) -> str:
    """The first of the names of columns, for a message: on one line, of a length that one can read."""
    shown = [printable(name)[:_LONGEST_NAME] for name in sorted(names)[:_MOST_NAMES]]
    return ", ".join([*shown, *(["..."] if len(names) > _MOST_NAMES else [])]) or "none"


def warn_of_unused(name: str, unused: Mapping[str, int], total: int) -> None:
    """Say which keys of the file `name` nothing is read of, and in how many of its records each stands."""
    if unused:
        listed = ", ".join(f"{key} (in {count:,} of {total:,} records)" for key, count in unused.items())
        count = "1 key is" if len(unused) == 1 else f"{len(unused)} keys are"
        warnings.warn(f"{name}: {count} not used: {listed}", ChipWarning, stacklevel=2)
