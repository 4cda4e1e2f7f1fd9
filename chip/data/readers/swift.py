"""ms-swift's layouts beside `messages`: `query` and `response`, and `conversation` with `human` and `assistant`."""

from __future__ import annotations

from collections.abc import Iterator

from chip.data.readers.entries import entries
from chip.data.readers.fields import parse_object, parse_text
from chip.data.readers.messages import IMAGES
from chip.data.readers.records_file import RecordsFile
from chip.data.readers.turns import as_list, conversation_records, opening
from chip.data.record import ASSISTANT, USER, Record, Turn


class QueryResponse:
    """`query` and `response`; if need be `system`, `images`, and `history` as pairs."""

    def matches(self, file: RecordsFile) -> bool:
        return {"query", "response"} <= file.columns

    def read(self, file: RecordsFile) -> Iterator[Record]:
        for entry in entries(file, ("query", "response", "system", "history", *IMAGES)):
            turns = [Turn(USER, entry.text("query")), Turn(ASSISTANT, entry.text("response"))]
            yield from conversation_records(entry, [*opening(entry), *turns], entry.images(*IMAGES))


class HumanAssistant:
    """`conversation`: a list of objects with `human` and `assistant`."""

    def matches(self, file: RecordsFile) -> bool:
        return "conversation" in file.columns and not {"question", "answer"} <= file.columns

    def read(self, file: RecordsFile) -> Iterator[Record]:
        for entry in entries(file, ("conversation", "system", *IMAGES)):
            turns = opening(entry)
            for number, given in enumerate(as_list(entry.row.get("conversation"), "conversation", entry.where)):
                at = f"{entry.where}, conversation {number}"
                pair = parse_object(given, at)
                entry.unused.look(pair, {"human", "assistant"}, at, "conversation.")
                turns += [Turn(role, parse_text(pair.get(key), key, at)) for role, key in _SPEAKERS]
            yield from conversation_records(entry, turns, entry.images(*IMAGES))


_SPEAKERS = ((USER, "human"), (ASSISTANT, "assistant"))
