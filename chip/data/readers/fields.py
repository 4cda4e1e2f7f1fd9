"""What the fields of a row may hold. Each function raises `InputError` in one line that begins with `where`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chip.data.record import LEVELS
from chip.errors import InputError, one_line


def parse_json(text: object, where: str) -> object:
    if not isinstance(text, str):
        raise InputError(f"{where}: must hold JSON text, and holds {type(text).__name__}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} at column {error.colno}; correct it") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise InputError(f"{where}: not usable JSON ({one_line(error)}); correct it") from error


def parse_object(entry: object, where: str) -> dict[str, Any]:
    """The entry without its nulls: a null counts as missing everywhere."""
    if not isinstance(entry, dict):
        raise InputError(f'{where}: must be a JSON object, such as {{"question": ..., "answer": ...}}')
    return {key: value for key, value in entry.items() if value is not None}


def parse_text(value: object, name: str, where: str) -> str:
    """The field `name`, a string that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {name} must be a string that is not empty")
    return value


def parse_id(value: object, level: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip() or "/" in value:
        raise InputError(f"{where}: {level} {value!r} is not an id; use a string that is not empty, without '/'")
    return value


def node_path(ids: Mapping[str, object], where: str) -> tuple[str, ...]:
    """The path of a node, by the ids of its levels: no level may be missing above another."""
    present = [level for level in LEVELS if level in ids]
    if not present:
        raise InputError(f"{where}: belongs nowhere; add at least an institution")
    for level in LEVELS[: LEVELS.index(present[-1])]:
        if level not in ids:
            raise InputError(f"{where}: has a {present[-1]} but no {level}; add the {level} it belongs to")
    return tuple(parse_id(ids[level], level, where) for level in present)


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
