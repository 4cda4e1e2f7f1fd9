"""Marks of a chat format that some files have in their questions and answers; the model's own format writes them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from chip.data.record import Record
from chip.errors import ChipWarning, InputError

IMAGE_PLACEHOLDER = "<image>"
"""What stands for an image in conversations as LLaVA, TRL and ms-swift write them."""

ENDS_OF_TURN = (
    *("</s>", "<eos>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<|eot|>"),
    *("<end_of_turn>", "<turn|>", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)
"""What chat formats write behind an answer."""


def without_marks(records: Iterable[Record], name: str) -> Iterator[Record]:
    """The records without an image's placeholder at the start of a question, and what ends a turn behind an answer.

    How many answers had such an end is said by a `ChipWarning` about the file `name`.

    Raises:
        InputError: a placeholder stands elsewhere, or where there is no image; or nothing else is there.
    """
    ends: Counter[str] = Counter()
    for record in records:
        question, answer = _question(record), _answer(record)
        if answer != record.answer:
            ends[record.answer[len(answer) :].strip()] += 1
        yield (
            record
            if (question, answer) == (record.question, record.answer)
            else replace(record, question=question, answer=answer)
        )
    if ends:
        listed = ", ".join(f"{end} ({count:,})" for end, count in ends.items())
        message = f"{name}: answers end in {listed}, which is left out: the model's chat format writes it"
        warnings.warn(message, ChipWarning, stacklevel=2)


def _question(record: Record) -> str:
    question = record.question
    if record.image is not None and question.lstrip().startswith(IMAGE_PLACEHOLDER):
        question = question.lstrip().removeprefix(IMAGE_PLACEHOLDER).lstrip()
    for text, what in ((question, "question"), (record.answer, "answer")):
        if IMAGE_PLACEHOLDER in text:
            known = (
                "; the record has no image" if record.image is None else " elsewhere than once at the question's start"
            )
            raise InputError(f"{record.where}: the {what} holds {IMAGE_PLACEHOLDER}{known}; take it out")
    if not question.strip():
        raise InputError(f"{record.where}: the question is {IMAGE_PLACEHOLDER} alone; add what is asked")
    return question


def _answer(record: Record) -> str:
    answer = record.answer
    while end := next((end for end in ENDS_OF_TURN if _ends_in(answer, end)), None):
        answer = answer.rstrip().removesuffix(end).rstrip()
    if not answer.strip():
        raise InputError(f"{record.where}: the answer is {record.answer.strip()} alone; add what the model is to say")
    return answer


def _ends_in(answer: str, end: str) -> bool:
    """Whether it ends a turn there, and is not the end of a pair of HTML tags such as <s>struck</s>."""
    return answer.rstrip().endswith(end) and end.replace("/", "") not in answer.replace(end, "")
