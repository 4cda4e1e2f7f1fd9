"""PMC-VQA (Zhang et al. 2023, arXiv 2305.10415): a figure, a question and four options a row, in CSV files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from chip.data.readers.entries import Entry, entries
from chip.data.readers.records_file import RecordsFile
from chip.data.readers.turns import conversation_records
from chip.data.record import ASSISTANT, USER, Record, Turn
from chip.errors import InputError

LETTERS = ("A", "B", "C", "D")
CHOICES = tuple(f"Choice {letter}" for letter in LETTERS)
IMAGE = "Figure_path"

_LETTER = re.compile(r"^\s*[A-D]\s*[:.)]\s*")  # some files repeat the letter in the option


class PMCVQA:
    """`Figure_path`, `Question`, `Choice A` to `Choice D`, and `Answer`: an option's text or its letter.

    The options stand behind the question, as A) ... B) ..., and the answer is the letter.
    """

    def matches(self, file: RecordsFile) -> bool:
        return {IMAGE, "Question", "Answer", *CHOICES} <= {name.strip() for name in file.columns}

    def read(self, file: RecordsFile) -> Iterator[Record]:
        spaced = {name for name in file.columns if name.strip() in (IMAGE, "Question", "Answer", *CHOICES)}
        for entry in entries(file, (*spaced, "Answer_label")):
            row = {name.strip(): str(value).strip() for name, value in entry.row.items() if name in spaced}
            options = {letter: _LETTER.sub("", row.get(key, "")) for letter, key in zip(LETTERS, CHOICES, strict=True)}
            listed = " ".join(f"{letter}) {text}" for letter, text in options.items())
            letter = _letter(entry, row.get("Answer", ""), options)
            named = next(name for name in spaced if name.strip() == IMAGE)
            turns = [Turn(USER, f"{row.get('Question', '')} {listed}"), Turn(ASSISTANT, letter)]
            yield from conversation_records(entry, turns, entry.images(named), task="classification")


def _letter(entry: Entry, answer: str, options: dict[str, str]) -> str:
    label = str(entry.row.get("Answer_label", "")).strip()
    given = _LETTER.sub("", answer)
    letters = [letter for letter, text in options.items() if answer == letter or (given and text == given)]
    if label in options and (label in letters or not letters):
        return label
    if len(letters) != 1:
        raise InputError(f"{entry.where}: Answer {answer!r} is none of the options; correct it")
    return letters[0]
