"""MedForget (Wu et al. 2025, arXiv 2512.09867): questions about the nodes of hospitals, a node and an image a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chip.data.readers.entries import Entry, entries
from chip.data.readers.fields import encoded_image, image_file, parse_json, parse_object, parse_text
from chip.data.readers.images import Images
from chip.data.readers.records_file import RecordsFile
from chip.data.record import LEVELS, Record
from chip.errors import InputError

_COLUMNS = ("metadata", "hierarchy_metadata", "image", "image_path")
_PAIR = {"Question", "Answer"}
_IDS = {"institution": "institution_id", "patient": "patient_id", "study": "study_id", "section": "section_name"}
_LEVEL = "hierarchy_level"


class MedForget:
    """A table with the columns `metadata`, `hierarchy_metadata`, `image` and `image_path`.

    Where an answer is a list, its first entry is taken, the others are alternatives to it. A question belongs to the
    level that `hierarchy_level` names, even where the ids go deeper, and is a cloze where it holds `[blank]`, a
    classification where it lists options.
    """

    def matches(self, file: RecordsFile) -> bool:
        return {"metadata", "hierarchy_metadata"} <= file.columns

    def read(self, file: RecordsFile) -> Iterator[Record]:
        for entry in entries(file, _COLUMNS):
            image = _image(entry.row, file.images, entry.where)
            images, owned = _named(entry.row, image), entry.owned_by(_ids(entry))
            for question, answer in _pairs(entry):
                yield owned.record(question, answer, images, task=_task(question))


def _pairs(entry: Entry) -> Iterator[tuple[str, str]]:
    at = f"{entry.where}, metadata"
    pairs = parse_json(entry.row.get("metadata"), at)
    if not isinstance(pairs, list):
        raise InputError(f"{entry.where}: metadata must be a JSON list of Question and Answer")
    for each in pairs:
        pair = parse_object(each, at)
        entry.unused.look(pair, _PAIR, at, "metadata.")
        answer = pair.get("Answer")
        if isinstance(answer, list):
            answer = answer[0] if answer else None
        yield parse_text(pair.get("Question"), "Question", entry.where), parse_text(answer, "Answer", entry.where)


def _image(row: Mapping[str, Any], folder: Path, where: str) -> Path | bytes | None:
    encoded = encoded_image(row.get("image"), where)
    name = row.get("image_path")
    return image_file(name, folder, where) if encoded is None and name is not None else encoded


def _named(row: Mapping[str, Any], image: Path | bytes | None) -> Images:
    return Images() if image is None else Images((image,), (str(row.get("image_path") or ""),))


def _ids(entry: Entry) -> dict[str, object]:
    """Level -> id, down to the level that is asked about.

    Raises:
        InputError: an id is lacking above that level, or stands under a key that is none.
    """
    at = f"{entry.where}, hierarchy_metadata"
    given = parse_object(parse_json(entry.row.get("hierarchy_metadata"), at), at)
    # An empty name counts as missing there.
    ids = {level: given[key] for level, key in _IDS.items() if given.get(key, "") != ""}
    unmapped = entry.file.owners is None
    meant = tuple(_IDS.values()) if unmapped else ()
    entry.unused.look(given, {*_IDS.values(), _LEVEL}, at, "hierarchy_metadata.", meant)
    level = given.get(_LEVEL)
    if level not in LEVELS:
        return ids
    levels = LEVELS[: LEVELS.index(level) + 1]
    if unmapped and (lacking := next((each for each in levels if each not in ids), None)):
        raise InputError(f"{at}: it asks about a {level}, and has no {_IDS[lacking]}; add it")
    return {each: ids[each] for each in levels if each in ids}


def _task(question: str) -> str:
    if "[blank]" in question:
        return "cloze"
    return "classification" if all(option in question for option in ("A)", "B)", "C)")) else "generation"
