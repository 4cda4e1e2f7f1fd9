"""Leaks: what comes out when a model is asked again and again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.data.answers import is_correct
from chip.evaluation.config import EvalConfig
from chip.evaluation.context import EvalContext
from chip.evaluation.rows import NO_ATTACK
from chip.model.generation import draw_answers

Array = NDArray[np.float64]


def leak_at_k(correct: Array) -> Array:
    """(n,): 1 where any of a record's answers is correct; correct (n, k), 1 or 0."""
    return np.asarray(correct.any(axis=1), dtype=np.float64)


def expected_leak(probability: Array, k: int) -> Array:
    """What leak@k is on average over all draws: 1 − (1 − p)^k, p the probability of the whole answer and its end."""
    leak: Array = -np.expm1(k * np.log1p(-np.minimum(probability, 1 - np.finfo(np.float64).epsneg)))
    return leak


def measure_leak(context: EvalContext, config: EvalConfig) -> None:
    """`leak_at_K` among K answers drawn at temperature 1, and `expected_leak_at_K`, its mean over all draws."""
    k, indices = config.draws, config.sample("target")
    if not k:
        return
    questions = [config.records[index] for index in indices]
    with context.progress("drawing", k * len(indices)) as advance:
        answers = draw_answers(context.vlm, questions, k, config.seed, on_batch=advance)
    correct = [
        [is_correct(text, record.answer) for text in texts] for texts, record in zip(answers, questions, strict=True)
    ]
    leaks = leak_at_k(np.array(correct, dtype=np.float64).reshape(len(indices), k))
    context.put(NO_ATTACK, f"leak_at_{k}", dict(zip(indices, leaks.tolist(), strict=True)))
    lengths = np.array([prompt.answer for prompt in context.vlm.prompts.read(questions)])
    whole_answer = context.outputs.values[NO_ATTACK, "answer_probability"][indices] ** lengths
    expected = expected_leak(whole_answer, k).tolist()
    context.put(NO_ATTACK, f"expected_leak_at_{k}", dict(zip(indices, expected, strict=True)))
