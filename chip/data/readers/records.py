"""Records as chip writes them: one question a JSON line, or a row of a parquet file with the same columns."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from chip.data.readers.fields import encoded_image, image_file, node_path, parse_object, parse_text
from chip.data.readers.records_file import JSON_LINES, RecordsFile
from chip.data.record import LEVELS, TASKS, Record
from chip.errors import ChipWarning, InputError

KEYS = ("question", "answer", "image", "task", "split", *LEVELS)
"""What is read of a record."""

DATA_KEYS = {
    **dict.fromkeys(("images", "image_path", "image_paths", "image_file", "image_url"), "give one path as image"),
    **dict.fromkeys(("video", "videos", "audio", "audios"), "a record has an image or none"),
    **dict.fromkeys(("conversations", "conversation", "messages"), "give each turn as question and answer"),
    "system": "put what it says into the question",
}
"""Keys of other formats -> what to do. What they hold would change a record, and must not be passed over."""

_CLOSE = 0.8  # of 1: how alike a key and a misspelling of it are
_OTHER_ENDS = ("_id", "_name")  # `patient_id` for `patient`


class Records:
    """`question` and `answer`, one of `LEVELS` or several, and if need be `image`, `task` and `split`.

    `image` is a path relative to the file; in a parquet file it may also be the encoded bytes.
    """

    def matches(self, file: RecordsFile) -> bool:
        return file.kind in JSON_LINES or {"question", "answer"} <= file.columns

    def read(self, file: RecordsFile) -> Iterator[Record]:
        unused: Counter[str] = Counter()
        total = 0
        for row, where in file.rows():
            entry = parse_object(row, where)
            total += 1
            unused.update(_unused_keys(entry, where))
            yield _record(entry, file.path.parent, where)
        if unused:
            _warn_of_unused(file.path.name, unused, total)


def _record(entry: Mapping[str, Any], folder: Path, where: str) -> Record:
    task = parse_text(entry.get("task", "generation"), "task", where)
    if task not in TASKS:
        raise InputError(f"{where}: unknown task {task!r}; use {', '.join(TASKS)}")
    return Record(
        question=parse_text(entry.get("question"), "question", where),
        answer=parse_text(entry.get("answer"), "answer", where),
        path=node_path(entry, where),
        image=_image(entry["image"], folder, where) if "image" in entry else None,
        task=task,
        split=parse_text(entry.get("split", "train"), "split", where),
        where=where,
    )


def _image(value: object, folder: Path, where: str) -> Path | bytes | None:
    if isinstance(value, bytes | dict) and (encoded := encoded_image(value, where)) is not None:
        return encoded
    return image_file(value.get("path") if isinstance(value, dict) else value, folder, where)


def _unused_keys(entry: Mapping[str, Any], where: str) -> list[str]:
    """Keys that nothing is read of.

    Raises:
        InputError: one of them holds data, or is a key that the record lacks, misspelt.
    """
    unused = [key for key in entry if key not in KEYS]
    for key in unused:
        if key in DATA_KEYS:
            raise InputError(f"{where}: the key {key} is not read; {DATA_KEYS[key]}")
        if meant := next((known for known in meant_keys(key) if known not in entry), None):
            raise InputError(f"{where}: no key is called {key!r}; did you mean {meant}?")
    return unused


def _warn_of_unused(name: str, unused: Mapping[str, int], total: int) -> None:
    listed = ", ".join(f"{key} (in {count:,} of {total:,} records)" for key, count in unused.items())
    count = "1 key is" if len(unused) == 1 else f"{len(unused)} keys are"
    warnings.warn(f"{name}: {count} not used: {listed}", ChipWarning, stacklevel=2)


@cache
def meant_keys(key: str) -> Collection[str]:
    """The keys of a record that this one may be a misspelling of."""
    name = key.strip().casefold()
    for end in _OTHER_ENDS:
        if name.removesuffix(end) in LEVELS:
            return (name.removesuffix(end),)
    return difflib.get_close_matches(name, KEYS, n=len(KEYS), cutoff=_CLOSE)
