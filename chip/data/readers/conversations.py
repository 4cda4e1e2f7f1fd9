"""Conversations as LLaVA, ShareGPT and LLaMA-Factory have them: `conversations` with `from` and `value`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

from chip.data.readers.entries import entries
from chip.data.readers.messages import IMAGES, all_images
from chip.data.readers.records_file import RecordsFile
from chip.data.readers.turns import conversation_records, opening, parse_turns
from chip.data.record import IMAGE_PLACEHOLDER, USER, Record, Turn
from chip.errors import ChipWarning


class Conversations:
    """`conversations`; LLaVA has its one `image` beside them, LLaMA-Factory `images`, and `system`.

    LLaVA's training puts a turn's image in front of what is asked, wherever it stands there, and so does this reader.
    """

    def matches(self, file: RecordsFile) -> bool:
        return "conversations" in file.columns and not {"question", "answer"} <= file.columns

    def read(self, file: RecordsFile) -> Iterator[Record]:
        moved = 0
        for entry in entries(file, ("conversations", "system", *IMAGES)):
            turns, brought = parse_turns(entry, "conversations")
            if isinstance(entry.row.get("image"), str):
                in_front = _in_front(turns)
                moved += in_front != turns
                turns = in_front
            yield from conversation_records(entry, [*opening(entry), *turns], all_images(entry, brought))
        if moved:
            message = f"{file.path.name}: {IMAGE_PLACEHOLDER} behind a question is put in front of it, as LLaVA does"
            warnings.warn(f"{message} (in {moved:,} rows)", ChipWarning, stacklevel=2)


def _in_front(turns: Sequence[Turn]) -> list[Turn]:
    return [
        replace(turn, text=f"{IMAGE_PLACEHOLDER}{turn.text.replace(IMAGE_PLACEHOLDER, '').strip()}")
        if turn.role == USER and turn.text.count(IMAGE_PLACEHOLDER) == 1 and not _begins_so(turn.text)
        else turn
        for turn in turns
    ]


def _begins_so(text: str) -> bool:
    return text.lstrip().startswith(IMAGE_PLACEHOLDER)
