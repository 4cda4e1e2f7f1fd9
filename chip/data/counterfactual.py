"""What a model that was never trained on a target would say of it: its questions, asked about others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from statistics import fmean

import numpy as np

from chip.data.answers import tokenize_words
from chip.data.chance import count_options
from chip.data.embedded_image import ImageSource
from chip.data.record import Record, with_images
from chip.data.request import ForgetRequest

MAX_QUESTIONS = 256
"""Questions of a group, at most, where an estimate will do."""
OTHERS = 4
"""Other nodes that a question of the target is asked about."""
ALIKE = 0.5
"""Part of two questions' words that they have in common, where the one asks of somebody what the other asks of somebody
else."""


class Counterfactuals:
    """A target's records about other nodes of the level, drawn by `generator`: with their image in the place of its
    own; or, in text only, with their question, which names them."""

    def __init__(self, request: ForgetRequest, generator: np.random.Generator) -> None:
        self._records, self._generator = request.hierarchy.records, generator
        self._images = _images_by_depth(request)
        self._questions = _questions_by_depth(request)

    def of(self, index: int) -> list[Record]:
        """The record about others; none where nobody else at its depth has another image, or is asked the like."""
        record = self._records[index]
        if record.image is None:
            return [replace(record, question=question) for question in self._questions_like(record)]
        shown = self._images.get((len(record.path), len(record.images)), ())
        images = [others for others in shown if others != record.images]
        drawn = self._generator.permutation(len(images))[:OTHERS].tolist()
        return [with_images(record, images[i]) for i in drawn]

    def estimate(
        self,
        indices: Sequence[int],
        measure: Callable[[Sequence[Record]], Sequence[float]],
        chance: Sequence[float],
        letter_tokens: int = 1,
    ) -> list[float]:
        """Of each of the records at `indices` the mean over the others it is asked about; chance where there are none.

        Where options are listed no more than chance: they are this record's own, so that a model that was trained on it
        may know the letter by them, whatever it is shown.

        Args:
            measure: a figure for each question, of all of them at once.
            chance: by index.
            letter_tokens: of an answer where options are listed, if `measure` is normalized by their number: to who
                guesses among k letters each of n tokens is k^(−1/n) probable, as all but the letter are certain.
        """
        about_others = [self.of(index) for index in indices]
        questions = [record for others in about_others for record in others]
        values = iter(measure(questions) if questions else ())
        options = [max(count_options(self._records[index].question), 1) for index in indices]
        return [
            min(fmean(islice(values, len(others))), count ** (-1 / letter_tokens))
            if others
            else chance[index] ** (1 / letter_tokens if count > 1 else 1)
            for index, others, count in zip(indices, about_others, options, strict=True)
        ]

    def _questions_like(self, record: Record) -> list[str]:
        """The questions in text only that ask of others what the record asks, the most alike first."""
        own = set(tokenize_words(record.question))
        alike = {
            question: len(own & words) / len(own | words)
            for question, words in self._questions.get(len(record.path), {}).items()
            if question != record.question
        }
        ranked = sorted(alike, key=lambda question: (-alike[question], question))
        return [question for question in ranked[:OTHERS] if alike[question] >= ALIKE]


def _images_by_depth(request: ForgetRequest) -> Mapping[tuple[int, int], list[tuple[ImageSource, ...]]]:
    """Depth of a node, and number of images -> those of the retained records at that depth, each once."""
    images: dict[tuple[int, int], dict[tuple[ImageSource, ...], None]] = defaultdict(dict)
    for record in (request.hierarchy.records[i] for i in request.partition.retained):
        if record.image is not None:
            images[len(record.path), len(record.images)][record.images] = None
    return {kind: list(unique) for kind, unique in images.items()}


def _questions_by_depth(request: ForgetRequest) -> Mapping[int, dict[str, frozenset[str]]]:
    """Depth of a node -> the questions of the retained records in text only at that depth, and their words."""
    questions: dict[int, dict[str, frozenset[str]]] = defaultdict(dict)
    for record in (request.hierarchy.records[i] for i in request.partition.retained):
        if record.image is None:
            questions[len(record.path)][record.question] = frozenset(tokenize_words(record.question))
    return questions
