"""What counts as the same answer, and what else could have been answered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from chip.data.record import Record

_TOKEN = re.compile(r"\w+|[^\w\s]")
LISTED = re.compile(r"(?:^|\s)\(?([A-Z])[).:]\s+(.*?)(?=\s+\(?[A-Z][).:]\s|$)", re.DOTALL)


def tokenize_words(text: str) -> list[str]:
    """Words and signs, without regard to case: in `A+` the sign is what tells."""
    return _TOKEN.findall(text.casefold())


def normalized(text: str) -> str:
    """Without regard to case, spaces, and a full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".")


def normalized_question(record: Record) -> str:
    return normalized(record.question)


def is_correct(prediction: str, answer: str) -> bool:
    """Whether what the model said is the answer."""
    return normalized(prediction) == normalized(answer)


def canonical_answer(record: Record) -> str:
    """What the record's answer says, normalized: the text of the option, where the answer is its letter."""
    answer = record.answer.strip()
    text = dict(LISTED.findall(record.question)).get(answer, answer) if record.task == "classification" else answer
    return normalized(text)


def choices(record: Record) -> list[str]:
    """What a classification lets one answer, its own answer included; empty where the question lists no such options.

    Letters where the answer is a letter, else the options' texts.
    """
    listed = dict(LISTED.findall(record.question))
    answers = list(listed) if record.answer.strip() in listed else [text.strip() for text in listed.values()]
    return answers if record.answer.strip() in answers else []


def alternatives(records: Sequence[Record], indices: Iterable[int], most: int, seed: int) -> dict[int, list[str]]:
    """Wrong answers to some of the records' questions that are plausible: what the same question got at other nodes.

    Of a classification, its other options. At most `most` each, drawn by the seed; none where nobody else was asked.
    """
    answers: dict[str, dict[str, set[tuple[str, ...]]]] = {}  # question -> answer -> the nodes it is correct at
    for record in records:
        answers.setdefault(record.question, {}).setdefault(record.answer.strip(), set()).add(record.path)
    result = {}
    for index in indices:
        record, nodes_of = records[index], answers[records[index].question]
        correct = {normalized(answer) for answer, nodes in nodes_of.items() if record.path in nodes}
        wrong = sorted(answer for answer in choices(record) or nodes_of if normalized(answer) not in correct)
        order = np.random.default_rng([seed, index]).permutation(len(wrong))
        result[index] = [wrong[i] for i in order[:most]]
    return result
