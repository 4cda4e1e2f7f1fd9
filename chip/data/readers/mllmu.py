"""MLLMU-Bench (Liu et al. 2024, arXiv 2410.22108): questions about people who do not exist, a person a row."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from chip.data.readers.entries import entries
from chip.data.readers.fields import encoded_image, parse_id, parse_object, parse_text
from chip.data.readers.images import Images
from chip.data.readers.records_file import RecordsFile
from chip.data.record import Record
from chip.errors import ChipWarning, InputError

TASKS = ("Classification_Task", "Generation_Task", "Mask_Task")
"""Columns that hold questions; a file may lack some."""

_COLUMNS = {"ID", "image", "images", "question", "answer", "biography", *TASKS}


class MLLMUBench:
    """A table with the column `ID` and some of `TASKS`.

    A person is the node `people/ID`, where a row says no other owner. The tasks' questions are records, and so is the
    row's own `question`, where it has one; the biography is not. Questions of pure text have no image; of several
    `images` the first is taken. The answer to a classification is the letter of its option.
    """

    def matches(self, file: RecordsFile) -> bool:
        return not file.columns.isdisjoint(TASKS)

    def read(self, file: RecordsFile) -> Iterator[Record]:
        several = 0
        for entry in entries(file, _COLUMNS):
            several += len(entry.row.get("images") or ()) > 1
            person = {"institution": "people", "patient": parse_id(entry.row.get("ID"), "ID", entry.where)}
            owned = replace(entry, row={**person, **entry.row})
            for record in _records(entry.row, entry.where):
                images = Images() if record.image is None else Images(record.images, ("",))
                yield owned.record(record.question, record.answer, images, task=record.task)
        if several:
            message = f"{file.path.name}: of several images the first is taken (in {several:,} rows)"
            warnings.warn(message, ChipWarning, stacklevel=2)


def _records(row: Mapping[str, Any], where: str) -> Iterator[Record]:
    """Everything that is asked of the row's person."""
    image = encoded_image(next(iter(row.get("images") or [row.get("image")])), where)
    if row.get("question") is not None:
        question, answer = (parse_text(row.get(name), name, where) for name in ("question", "answer"))
        yield Record(question, answer, (), image, where=where)
    yield from _classifications(row, image, where)
    for column, task in (("Generation_Task", "generation"), ("Mask_Task", "cloze")):
        at = f"{where}, {column}"
        for entry in _objects(row.get(column), at):
            question, answer = (parse_text(entry.get(name), name, at) for name in ("Question", "Ground_Truth"))
            shown = None if entry.get("Type") == "Pure_Text" else image
            yield Record(question, answer, (), shown, task, where=where)


def _classifications(row: Mapping[str, Any], image: bytes | None, where: str) -> Iterator[Record]:
    questions = parse_object(row.get("Classification_Task") or {}, f"{where}, Classification_Task")
    for kind, shown in (("Image_Textual_Questions", image), ("Pure_Text_Questions", None)):
        at = f"{where}, {kind}"
        for entry in _objects(questions.get(kind), at):
            options = parse_object(entry.get("Options"), f"{at}, Options")
            listed = " ".join(f"{letter}) {text}" for letter, text in options.items())
            answer = parse_text(entry.get("Correct_Answer"), "Correct_Answer", at)
            if answer not in options:
                raise InputError(f"{at}: Correct_Answer {answer!r} is no option; use one of {', '.join(options)}")
            question = f"{parse_text(entry.get('Question'), 'Question', at)} {listed}"
            yield Record(question, answer, (), shown, "classification", where=where)


def _objects(entries: object, where: str) -> list[dict[str, Any]]:
    """The entries of a list, none where there is no list."""
    if not isinstance(entries, list | None):
        raise InputError(f"{where}: must be a list of questions")
    return [parse_object(entry, where) for entry in entries or ()]
