"""Conversations under `messages`, as transformers' chat format has them, and so TRL, ms-swift and LLaMA-Factory."""

from __future__ import annotations

from collections.abc import Iterator

from chip.data.readers.entries import Entry, entries
from chip.data.readers.images import Images
from chip.data.readers.records_file import RecordsFile
from chip.data.readers.turns import conversation_records, opening, parse_turns
from chip.data.record import Record
from chip.errors import InputError

IMAGES = ("image", "images")


class Messages:
    """`messages`: turns with `role` and `content`, a text or a list of parts; images in them, or in `images`."""

    def matches(self, file: RecordsFile) -> bool:
        return "messages" in file.columns and not {"question", "answer"} <= file.columns

    def read(self, file: RecordsFile) -> Iterator[Record]:
        for entry in entries(file, ("messages", "system", *IMAGES)):
            turns, brought = parse_turns(entry, "messages")
            yield from conversation_records(entry, [*opening(entry), *turns], all_images(entry, brought))


def all_images(entry: Entry, brought: Images) -> Images:
    """Those that the turns bring along, or those beside them.

    Raises:
        InputError: there are both.
    """
    beside = entry.images(*IMAGES)
    if beside.sources and brought.sources:
        raise InputError(f"{entry.where}: images stand both in the turns and beside them; leave one of the two out")
    return beside if beside.sources else brought
