"""Trace: can a classifier tell the model from a retrained one by its answers to *unrelated* prompts?

After arXiv 2506.14003. Whoever can tell knows that something was removed. Another retraining leaves traces, too; 0.5 is
a guess.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from chip.data.answers import tokenize_words
from chip.evaluation.answer_tokens import AnswerTokens, answer_tokens
from chip.evaluation.attacks.base import REFERENCE, Attack
from chip.evaluation.attacks.membership import auc, auc_samples
from chip.evaluation.bootstrap import weights
from chip.evaluation.context import EvalContext
from chip.evaluation.metrics.classifier import cross_validated_scores
from chip.model.generation import draw_answers

Array = NDArray[np.float64]

PROMPTS = 256
HASHES = 512
"""Features that the words of an answer, and its pairs of words, are hashed to."""
FURTHEST = (("unrelated", "general", "cousins"), ("siblings",))
"""Groups that prompts are taken from; the second where the first are empty."""


@dataclass(frozen=True)
class Trace(Attack):
    name = "trace"
    help = "Whether answers to unrelated prompts tell the model from one retrained without the target."
    needs = frozenset({REFERENCE})

    prompts: int = PROMPTS
    """At most; they are drawn by the seed."""

    def run(self, context: EvalContext) -> None:
        indices = self._prompts(context)
        if len(indices) < 2:
            context.skip(self.name, "there is nothing unrelated to ask about")
            return
        records = [context.records[index] for index in indices]
        with context.progress(f"{self.name}: answers", len(records)) as advance:
            texts = [text for (text,) in draw_answers(context.vlm, records, 1, context.seed, on_batch=advance)]
        with context.progress(f"{self.name}: probabilities", len(records)) as advance:
            tokens = answer_tokens(context.vlm, records, context.batch_size, advance)
        context.outputs.features["answers"] = np.array([hashed_words(text) for text in texts])
        context.outputs.features["probabilities"] = np.array([certainty(each) for each in tokens])

    def _prompts(self, context: EvalContext) -> list[int]:
        for groups in FURTHEST:
            candidates = [
                i for group in groups for i in context.groups.get(group, ()) if not context.records[i].held_out
            ]
            if candidates:
                order = np.random.default_rng(context.seed).permutation(len(candidates))[: self.prompts]
                return [candidates[place] for place in sorted(order.tolist())]
        return []


def hashed_words(text: str) -> Array:
    """(HASHES + 1,): how often each word and each pair of words occurs, by its hash; then how many words there are."""
    words = tokenize_words(text)
    features = np.zeros(HASHES + 1)
    for gram in (*words, *(" ".join(pair) for pair in pairwise(words))):
        features[zlib.crc32(gram.encode()) % HASHES] += 1
    features[-1] = len(words)
    return features


def certainty(tokens: AnswerTokens) -> Array:
    """(7,): mean, least and largest of the answer's log-probabilities, and of them standardized; the share of hits."""
    both: Sequence[Array] = (tokens.log_probability, tokens.standardized)
    return np.array([*(value for each in both for value in (each.mean(), each.min(), each.max())), tokens.hit.mean()])


def told_apart(own: Array, other: Array, seed: int) -> tuple[float, Array]:
    """Area under the ROC curve of a classifier on prompts that it has not seen, and the same in bootstrap samples.

    Args:
        own, other: (prompts, features) of two models that were asked the same.
    """
    scores = cross_validated_scores(own, other, seed)
    drawn = weights(range(len(own)), seed, "trace")
    return auc(*scores), auc_samples(*scores, drawn, drawn)
