"""MIMIC-CXR-VQA (Bae et al. 2023, arXiv 2310.18652): questions about radiographs, made from templates."""

from __future__ import annotations

from collections.abc import Iterator

from chip.data.readers.entries import entries
from chip.data.readers.fields import parse_text
from chip.data.readers.records_file import RecordsFile
from chip.data.readers.turns import as_list, conversation_records
from chip.data.record import ASSISTANT, USER, VALIDATION, Record, Turn

KEYS = ("question", "answer", "image_path", "subject_id", "study_id")
INSTITUTION = "mimic-cxr"
NOTHING = "none"
"""The answer of a question that nothing answers: an empty list there."""
_VALID = "valid"
"""What its second split is called."""


class MIMICCXRVQA:
    """A patient is `mimic-cxr/subject_id`, a study lies in it. Several answers are one, with commas between them."""

    def matches(self, file: RecordsFile) -> bool:
        return {*KEYS, "template"} <= file.columns

    def read(self, file: RecordsFile) -> Iterator[Record]:
        for entry in entries(file, KEYS):
            answers = as_list(entry.row.get("answer"), "answer", entry.where)
            answer = ", ".join(parse_text(each, "answer", entry.where) for each in answers) or NOTHING
            turns = [Turn(USER, entry.text("question")), Turn(ASSISTANT, answer)]
            split = {"split": VALIDATION} if entry.row.get("split") == _VALID else {}
            owner = {"patient": entry.row.get("subject_id"), "study": entry.row.get("study_id")}
            owned = entry.owned_by({"institution": INSTITUTION} | owner | split)
            yield from conversation_records(owned, turns, entry.images("image_path"))
