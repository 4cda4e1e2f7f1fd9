"""Records as chip writes them: one question a JSON line, or a row of a parquet file with the same columns."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from chip.data.readers.fields import encoded_image, image_file, node_path, parse_object, parse_text, warn_of_unused
from chip.data.readers.records_file import JSON_LINES, RecordsFile
from chip.data.record import LEVELS, TASKS, VALIDATION, Record
from chip.errors import InputError

KEYS = ("question", "answer", "image", "task", "split", *LEVELS)
"""What is read of a record."""

_ONE_IMAGE = "give one path as image"
_IN_QUESTION = "put what it says into the question"
_IN_RECORD = "give what was asked as question, what was said as answer"

DATA_KEYS = {
    **dict.fromkeys(("images", "image_path", "image_paths", "image_file", "image_url", "image_bytes"), _ONE_IMAGE),
    **dict.fromkeys(("img", "imgs", "img_path", "picture", "pictures", "pixel_values"), _ONE_IMAGE),
    **dict.fromkeys(("video", "videos", "audio", "audios"), "a record has an image or none"),
    **dict.fromkeys(("conversations", "conversation", "messages", "history"), "give each turn as question and answer"),
    **dict.fromkeys(("system", "system_prompt", "context", "hint", "passage", "tools"), _IN_QUESTION),
    **dict.fromkeys(("options", "choices"), "write them into the question, as A) ... B) ..."),
    **dict.fromkeys(("instruction", "input", "query", "prompt", "output", "response", "completion"), _IN_RECORD),
}
"""Keys of other formats -> what to do. What they hold would change a record, and must not be passed over."""

_SYNONYMS = {
    "hospital": "institution",
    **dict.fromkeys(("subject", "mrn", "pid", "patient_uid"), "patient"),
    **dict.fromkeys(("exam", "accession", "study_uid"), "study"),
    **dict.fromkeys(("subset", "fold", "partition"), "split"),
}
"""How others call keys: where a record lacks the key, it would be somebody else's, or taken for trained."""

_SPLITS = {"train": ("train", "training", "trained"), VALIDATION: ("validation", "valid", "val")}
"""Splits that mean something -> how others call them."""

_CLOSE = 0.8  # of 1: how alike a key and a misspelling of it are
_IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm")
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
        warn_of_unused(file.path.name, unused, total)


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
        split=_split(entry.get("split", "train"), where),
        where=where,
    )


def _split(value: object, where: str) -> str:
    """`train` must be written so: any other word would hold the record out."""
    split = parse_text(value, "split", where)
    for meant, words in _SPLITS.items():
        if split != meant and split.strip().casefold() in words:
            raise InputError(f"{where}: no split is called {split!r}; did you mean {meant}?")
    return split


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
        name = key.strip().casefold()
        if name in DATA_KEYS:
            raise InputError(f"{where}: the key {key} is not read; {DATA_KEYS[name]}")
        if _holds_image(entry[key], names_count="image" not in entry):
            raise InputError(f"{where}: the key {key} is not read, and holds an image; {_ONE_IMAGE}")
        if meant := next((known for known in meant_keys(key) if known not in entry), None):
            raise InputError(f"{where}: no key is called {key!r}; did you mean {meant}?")
    return unused


def _holds_image(value: object, names_count: bool) -> bool:
    """Whether it is encoded bytes, as `datasets` stores them or plain, or an image file's name; or a list of such.

    Args:
        names_count: where the record has an image, such a name may be its id.
    """
    if isinstance(value, list):
        return any(_holds_image(each, names_count) for each in value)
    if isinstance(value, dict):
        return "bytes" in value
    return isinstance(value, bytes) or (names_count and isinstance(value, str) and value.lower().endswith(_IMAGE_FILES))


@cache
def meant_keys(key: str) -> Collection[str]:
    """The keys of a record that this one may be a misspelling of, or another word for."""
    name = key.strip().casefold()
    for end in ("", *_OTHER_ENDS):
        if (level := name.removesuffix(end)) in LEVELS or level in _SYNONYMS:
            return (_SYNONYMS.get(level, level),)
    return difflib.get_close_matches(name, KEYS, n=len(KEYS), cutoff=_CLOSE)
