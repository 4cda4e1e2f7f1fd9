"""Leaks: a question is asked again and again, at several temperatures, until the answer comes out.

leak@k with its unbiased estimator from n ≥ k draws (arXiv 2511.04934, after pass@k of Chen et al. 2021, arXiv
2107.03374): what a regulator means by extraction that is direct, including probabilistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chip.data.answers import is_correct
from chip.evaluation.attacks.base import Attack
from chip.evaluation.context import EvalContext
from chip.evaluation.metrics.leak_estimator import leak_of
from chip.model.generation import draw_answers

MOST_QUESTIONS = 64


@dataclass(frozen=True)
class Leak(Attack):
    name = "leak"
    help = "Each question is asked 128 times at temperatures from 0.8 to 1.2: does the answer ever come out?"

    draws: int = 128
    """Answers to each question, at each temperature."""
    temperatures: Sequence[float] = (0.8, 1.0, 1.2)
    ks: Sequence[int] = (1, 4, 16, 64, 128)
    """For how many draws the leak is estimated; none above `draws`."""
    most: int = MOST_QUESTIONS
    """Questions about the target, at most; they are drawn by the seed."""

    def run(self, context: EvalContext) -> None:
        indices = context.sample_target(self.most)
        questions = [context.records[index] for index in indices]
        for temperature in self.temperatures:
            step = f"{self.name}: temperature {temperature:g}"
            with context.progress(step, self.draws * len(indices)) as advance:
                answers = draw_answers(
                    context.vlm, questions, self.draws, context.seed, on_batch=advance, temperature=temperature
                )
            right = np.array(
                [
                    sum(is_correct(text, record.answer) for text in texts)
                    for texts, record in zip(answers, questions, strict=True)
                ]
            )
            for k in self.ks:
                if k <= self.draws:
                    leaks = leak_of(right, self.draws, k).tolist()
                    context.put(step, f"leak_at_{k}", dict(zip(indices, leaks, strict=True)))
