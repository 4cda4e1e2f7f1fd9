"""Records as chip writes them, and tables of questions and answers with images: a question a row."""

from __future__ import annotations

from collections.abc import Iterator

from chip.data.readers.entries import entries
from chip.data.readers.records_file import JSON_LINES, RecordsFile
from chip.data.readers.turns import conversation_records, opening
from chip.data.record import ASSISTANT, IMAGE_PLACEHOLDER, USER, Record, Turn

IMAGE_KEYS = (
    *("image", "images", "image_path", "image_paths", "image_file", "image_name"),
    *("img", "img_path", "img_name", "picture", "pictures", "file_name", "file_names"),
)
"""Columns that hold images, or their paths: chip's own, those of VQA-RAD, SLAKE and PathVQA, and of image folders."""

KEYS = ("question", "answer", "system", "history", *IMAGE_KEYS)
"""What is read of a row, beside whose it is."""


class Records:
    """`question` and `answer`, and if need be images, a `system` prompt, the `history` of earlier turns.

    Images are paths relative to the file, or encoded bytes. The history is a list of pairs, question and answer.
    """

    def matches(self, file: RecordsFile) -> bool:
        if file.kind in JSON_LINES:  # one of the two may be misspelled; an empty file is for the reader to refuse
            return not file.columns or not file.columns.isdisjoint(("question", "answer"))
        return {"question", "answer"} <= file.columns

    def read(self, file: RecordsFile) -> Iterator[Record]:
        for entry in entries(file, KEYS):
            question, answer, images = entry.text("question"), entry.text("answer"), entry.images(*IMAGE_KEYS)
            earlier = opening(entry) if "system" in entry.row or "history" in entry.row else []
            if earlier or IMAGE_PLACEHOLDER in question:
                turns = [*earlier, Turn(USER, question), Turn(ASSISTANT, answer)]
                yield from conversation_records(entry, turns, images)
            else:
                yield entry.record(question, answer, images)
