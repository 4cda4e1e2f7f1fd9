"""Marks of a chat format that some files have in their questions and answers; the model's own format writes them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from chip.data.record import ASSISTANT, IMAGE_PLACEHOLDER, SYSTEM, USER, Record, Turn
from chip.errors import ChipWarning, InputError

ENDS_OF_TURN = (
    *("</s>", "<eos>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<|eot|>"),
    *("<end_of_turn>", "<turn|>", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)
"""What chat formats write behind an answer."""


def without_marks(records: Iterable[Record], name: str) -> Iterator[Record]:
    """The records without placeholders where they say nothing new, and without what ends a turn behind an answer.

    Placeholders say nothing where those of all images begin the first of the user's turns. How many answers had such an
    end is said by a `ChipWarning` about the file `name`.

    Raises:
        InputError: there are not as many placeholders as images, or one stands in what is not the user's; or nothing
            else is there.
    """
    ends: Counter[str] = Counter()
    for record in records:
        answer = _answer(record.answer, record.where)
        if answer != record.answer:
            ends[record.answer[len(answer) :].strip()] += 1
        history = tuple(_earlier(turn, record.where) for turn in record.history)
        if (answer, history) != (record.answer, record.history):
            record = replace(record, answer=answer, history=history)
        texts = (record.question, record.answer, *(turn.text for turn in record.history))
        yield _without_placeholders(record) if any(IMAGE_PLACEHOLDER in text for text in texts) else record
    if ends:
        listed = ", ".join(f"{end} ({count:,})" for end, count in ends.items())
        message = f"{name}: answers end in {listed}, which is left out: the model's chat format writes it"
        warnings.warn(message, ChipWarning, stacklevel=2)


def _earlier(turn: Turn, where: str) -> Turn:
    return replace(turn, text=_answer(turn.text, where)) if turn.role == ASSISTANT else turn


def _without_placeholders(record: Record) -> Record:
    _check_placeholders(record)
    first, *others = record.users_texts
    start = first.lstrip()
    for _ in record.images:
        start = start.removeprefix(IMAGE_PLACEHOLDER).lstrip()
    if record.has_placeholders and not any(IMAGE_PLACEHOLDER in text for text in (start, *others)):
        turns = iter((start, *others))
        history = [replace(turn, text=next(turns)) if turn.role == USER else turn for turn in record.history]
        record = replace(record, history=tuple(history), question=next(turns))
    if not record.question.replace(IMAGE_PLACEHOLDER, "").strip():
        raise InputError(f"{record.where}: the question is {IMAGE_PLACEHOLDER} alone; add what is asked")
    return record


def _check_placeholders(record: Record) -> None:
    for role, what in ((SYSTEM, "system prompt"), (ASSISTANT, "answer")):
        texts = [turn.text for turn in record.history if turn.role == role]
        if any(IMAGE_PLACEHOLDER in text for text in (*texts, record.answer if role == ASSISTANT else "")):
            known = "; the record has no image" if record.image is None else ""
            raise InputError(f"{record.where}: the {what} holds {IMAGE_PLACEHOLDER}{known}; take it out")
    count = sum(text.count(IMAGE_PLACEHOLDER) for text in record.users_texts)
    if count not in (0, len(record.images)):
        known = "; the record has no image" if record.image is None else f" {count} times, for {len(record.images)}"
        raise InputError(f"{record.where}: the question holds {IMAGE_PLACEHOLDER}{known}; take it out")


def _answer(answer: str, where: str) -> str:
    given = answer
    if answer.strip() and not answer.rstrip().endswith(">"):  # all ends do
        return answer
    while end := next((end for end in ENDS_OF_TURN if _ends_in(answer, end)), None):
        answer = answer.rstrip().removesuffix(end).rstrip()
    if not answer.strip():
        raise InputError(f"{where}: the answer is {given.strip()} alone; add what the model is to say")
    return answer


def _ends_in(answer: str, end: str) -> bool:
    """Whether it ends a turn there, and is not the end of a pair of HTML tags such as <s>struck</s>."""
    return answer.rstrip().endswith(end) and end.replace("/", "") not in answer.replace(end, "")
