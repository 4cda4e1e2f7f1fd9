"""What a model says by itself: text that goes on from a few words, and its own answers to general questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from chip.data.keep import text_record
from chip.data.record import Record
from chip.general.corpus import openers
from chip.model.generation import answer_greedily, draw_answers
from chip.model.loading import VLM

LENGTH = 96
"""Tokens of a text, at most, behind its opener."""
ANSWER = 48
"""Tokens of an answer, at most."""
TO_COME = "."
"""Stands where an answer is to come: a question ends before it."""
MIN_WORDS = 16
VARIED = 0.8
"""Of a text's runs of three words, the part that must not repeat; a model that goes round in circles shows none of
what it knows."""


def write_texts(vlm: VLM, count: int, seed: int) -> list[Record]:
    """What the model writes at temperature 1 when it goes on from `count` openers; several times from each, if need be.

    Fewer come back where it repeats itself or stops at once. The same for the same seed.
    """
    beginnings = np.random.default_rng(seed).permutation(openers()).tolist()
    times = -(-count // len(beginnings))
    prompts = [text_record(opener, "general text") for opener in beginnings[: min(count, len(beginnings))]]
    drawn = draw_answers(vlm, prompts, times, seed, longest=LENGTH)
    texts = [f"{prompt.question} {text}" for prompt, more in zip(prompts, drawn, strict=True) for text in more]
    return [text_record(text, "general text") for text in texts if is_varied(text)]


def is_varied(text: str) -> bool:
    """Whether it is a text at all, and hardly repeats itself."""
    words = text.split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return len(words) >= MIN_WORDS and len(set(runs)) >= VARIED * len(runs)


def with_own_answers(vlm: VLM, records: Sequence[Record]) -> list[Record]:
    """The records, where they lack an answer, with the model's own; without those to which it says nothing."""
    open_ones = [replace(record, answer=TO_COME) for record in records if not record.answer]
    answers = iter(answer_greedily(vlm, open_ones, longest=ANSWER))
    answered = [record if record.answer else replace(record, answer=next(answers)) for record in records]
    return [record for record in answered if record.answer]
