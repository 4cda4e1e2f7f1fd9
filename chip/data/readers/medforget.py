"""MedForget (Wu et al. 2025, arXiv 2512.09867): questions about the nodes of hospitals, a node and an image a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chip.data.readers.fields import (
    encoded_image,
    image_file,
    parse_json,
    parse_object,
    parse_text,
    warn_of_unused,
)
from chip.data.readers.images import Images
from chip.data.readers.records_file import RecordsFile
from chip.data.record import LEVELS, Record
from chip.errors import InputError

_COLUMNS = ("metadata", "hierarchy_metadata", "image", "image_path")
_PAIR = {"Question", "Answer"}
_IDS = {"institution": "institution_id", "patient": "patient_id", "study": "study_id", "section": "section_name"}


class MedForget:
    """A table with the columns `metadata`, `hierarchy_metadata`, `image` and `image_path`.

    Where an answer is a list, its first entry is taken, the others are alternatives to it. A question belongs to the
    level that `hierarchy_level` names, even where the ids go deeper, and is a cloze where it holds `[blank]`, a
    classification where it lists options.
    """

    def matches(self, file: RecordsFile) -> bool:
        return {"metadata", "hierarchy_metadata"} <= file.columns

    def read(self, file: RecordsFile) -> Iterator[Record]:
        unused: Counter[str] = Counter()
        total = 0
        for row, where in file.rows():
            image = _image(row, file.images, where)
            ids, images = _ids(row.get("hierarchy_metadata"), where), _named(row, image)
            for record in _records(row, image, where, unused):
                total += 1
                yield file.placed(replace(record, split=file.split), ids, row, images)
        warn_of_unused(file.path.name, {key: n for key, n in unused.items() if key not in file.mapped_columns}, total)


def _records(row: Mapping[str, Any], image: Path | bytes | None, where: str, unused: Counter[str]) -> Iterator[Record]:
    entries = parse_json(row.get("metadata"), f"{where}, metadata")
    if not isinstance(entries, list):
        raise InputError(f"{where}: metadata must be a JSON list of Question and Answer")
    for entry in entries:
        pair = parse_object(entry, f"{where}, metadata")
        unused.update(pair.keys() - _PAIR)
        unused.update(name for name, value in row.items() if value is not None and name not in _COLUMNS)
        question, answer = parse_text(pair.get("Question"), "Question", where), pair.get("Answer")
        if isinstance(answer, list):
            answer = answer[0] if answer else None
        yield Record(question, parse_text(answer, "Answer", where), (), image, task=_task(question), where=where)


def _image(row: Mapping[str, Any], folder: Path, where: str) -> Path | bytes | None:
    encoded = encoded_image(row.get("image"), where)
    name = row.get("image_path")
    return image_file(name, folder, where) if encoded is None and name is not None else encoded


def _named(row: Mapping[str, Any], image: Path | bytes | None) -> Images:
    return Images() if image is None else Images((image,), (str(row.get("image_path") or ""),))


def _ids(text: object, where: str) -> dict[str, object]:
    """Level -> id, down to the level that is asked about."""
    at = f"{where}, hierarchy_metadata"
    entry = parse_object(parse_json(text, at), at)
    # An empty name counts as missing there.
    ids = {level: entry[key] for level, key in _IDS.items() if entry.get(key, "") != ""}
    level = entry.get("hierarchy_level")
    return {each: ids[each] for each in LEVELS[: LEVELS.index(level) + 1] if each in ids} if level in LEVELS else ids


def _task(question: str) -> str:
    if "[blank]" in question:
        return "cloze"
    return "classification" if all(option in question for option in ("A)", "B)", "C)")) else "generation"
