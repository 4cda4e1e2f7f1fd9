"""A record as messages: who says what before its answer, and where its images stand."""

from __future__ import annotations

from typing import Any

from chip.data.record import IMAGE_PLACEHOLDER, USER, Record, Turn
from chip.errors import InputError


def chat_messages(record: Record) -> list[dict[str, Any]]:
    """What comes before the record's answer, in transformers' chat format: messages with lists of parts."""
    turns = (*record.history, Turn(USER, record.question))
    first = next(number for number, turn in enumerate(turns) if turn.role == USER)
    return [
        {"role": turn.role, "content": _parts(record, turn, begins=number == first)}
        for number, turn in enumerate(turns)
    ]


def _parts(record: Record, turn: Turn, begins: bool) -> list[dict[str, str]]:
    """
    Args:
        begins: it is the first of the user's turns, which has the images where nothing says where they stand.
    """
    image, text = {"type": "image"}, {"type": "text", "text": turn.text}
    if turn.role != USER or not record.has_placeholders:
        return [*([image] * len(record.images) if begins else []), text]
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(turn.text.split(IMAGE_PLACEHOLDER)):
        parts += [image] * (number > 0) + [{"type": "text", "text": piece}] * bool(piece)
    return parts


def said_before(record: Record) -> list[tuple[str, str]]:
    """What is asked and said before the record's answer, between images, and each time what it is.

    Raises:
        InputError: there are not as many placeholders of images as images.
    """
    count = sum(text.count(IMAGE_PLACEHOLDER) for text in record.users_texts)
    if record.has_placeholders and count != len(record.images):
        message = f"{IMAGE_PLACEHOLDER} stands there {count} times, for {len(record.images)} images; correct it"
        raise InputError(f"{record.where}: {message}")
    turns = [*((turn.text, "earlier turn") for turn in record.history), (record.question, "question")]
    return [(text, what) for turn, what in turns for text in _pieces(record, turn)]


def _pieces(record: Record, text: str) -> list[str]:
    """The text between the placeholders of images; the text as it is where the record has none."""
    return text.split(IMAGE_PLACEHOLDER) if record.has_placeholders else [text]


def words_come_first(record: Record) -> bool:
    """Whether what the user says begins with words, and an image stands behind them."""
    return record.has_placeholders and not record.users_texts[0].startswith(IMAGE_PLACEHOLDER)
