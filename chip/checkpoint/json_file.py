"""JSON that a stranger has written: whole, of a sane length, and an object without a name that occurs twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chip.checkpoint.file_signature import FileSignature
from chip.checkpoint.paths import damaged_file, open_inside
from chip.errors import printable

_LONGEST_JSON = 100_000_000  # bytes of a config or index; the longest known take a few million
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(folder: Path, name: str) -> tuple[dict[str, Any], FileSignature]:
    """The JSON object in the file `name` of `folder`, and the signature that the file had.

    Raises:
        InputError: as `open_inside` and `parse_json_object` do, and where the file is longer than 100 MB.
    """
    path = folder / name
    with open_inside(folder, name) as file:
        signature = FileSignature.of_open(file)
        if signature.size > _LONGEST_JSON:
            raise damaged_file(path, f"it has {signature.size:,} bytes, more than {_LONGEST_JSON:,}")
        text = file.read(signature.size)
    return parse_json_object(path, text), signature


def parse_json_object(path: Path, text: bytes, parse_int: Callable[[str], int | None] | None = None) -> dict[str, Any]:
    """The object that `text`, from the file `path`, is in JSON; `parse_int` reads whole numbers from their digits.

    Raises:
        InputError: not UTF-8, not JSON, not an object, or an object in it has one name twice.
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique, parse_int=parse_int)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair is no character: such a name is no text
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a name that occurs twice
        raise damaged_file(path, f"no JSON where there should be ({printable(str(error))})") from error
    if not isinstance(value, dict):
        raise damaged_file(path, "no JSON object where there should be")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names
