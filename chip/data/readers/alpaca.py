"""Instructions as Alpaca and LLaMA-Factory have them: `instruction`, `input` and `output`."""

from __future__ import annotations

from collections.abc import Iterator

from chip.data.readers.entries import entries
from chip.data.readers.messages import IMAGES
from chip.data.readers.records_file import RecordsFile
from chip.data.readers.turns import conversation_records, opening
from chip.data.record import ASSISTANT, USER, Record, Turn

KEYS = ("instruction", "input", "output", "system", "history", *IMAGES)


class Alpaca:
    """What is asked is the instruction and, in a line behind it, the input where there is one."""

    def matches(self, file: RecordsFile) -> bool:
        return {"instruction", "output"} <= file.columns

    def read(self, file: RecordsFile) -> Iterator[Record]:
        for entry in entries(file, KEYS):
            parts = [entry.text(key) for key in ("instruction", "input") if entry.row.get(key, "") != ""]
            question = "\n".join(parts or [entry.text("instruction")])
            turns = [Turn(USER, question), Turn(ASSISTANT, entry.text("output"))]
            yield from conversation_records(entry, [*opening(entry), *turns], entry.images(*IMAGES))
