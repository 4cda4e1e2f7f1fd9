"""Questions that a setting is chosen by, and nothing is reported on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from chip.data.chance import chance_accuracy
from chip.data.counterfactual import MAX_QUESTIONS, Counterfactuals
from chip.data.hierarchy import Hierarchy
from chip.data.record import VALIDATION, Record
from chip.data.request import STAYING, ForgetRequest
from chip.errors import ChipWarning
from chip.model.scoring import Scores

MIN_QUESTIONS = 20
"""Questions of a group, below which a figure says little."""
LETTER_TOKENS = 2
"""Of an answer where options are listed: the letter, and what ends the turn."""
VALIDATION_FRACTION = 1 / 8
"""The part of the trained retained questions that is held out, where no record has the split `validation`."""


def hold_out_validation(request: ForgetRequest, seed: int = 0) -> ForgetRequest:
    """The same request with some trained questions of what is retained as `validation`, of groups that have none.

    An edit that has seen a wording keeps it better than one it has not, so that the trials would promise too much.
    """
    records, generator = list(request.hierarchy.records), np.random.default_rng(seed)
    for indices in (request.partition.siblings, request.partition.retain_other):
        trained = [i for i in indices if not records[i].held_out]
        if not any(records[i].split == VALIDATION for i in indices):
            for i in generator.permutation(trained)[: int(len(trained) * VALIDATION_FRACTION)].tolist():
                records[i] = replace(records[i], split=VALIDATION)
    return ForgetRequest(Hierarchy(records), request.partition, request.general)


@dataclass(frozen=True)
class Answers:
    """To the questions of one group."""

    exact_match: NDArray[np.float64]
    """(n,) 1 or 0."""
    probability: NDArray[np.float64]
    """(n,)"""


class ValidationSet:
    """What is asked in a trial: of each group the questions with the split `validation`, else its trained ones.

    What a model says of a target it was never trained on is estimated by asking the unedited model the target's
    questions about other nodes of the level: how probable is the target's answer there? Where nobody else is asked the
    like, it is chance. What hangs on an image and what is asked in text only are different memories: one can be gone
    long before the other.
    """

    def __init__(self, request: ForgetRequest, seed: int = 0) -> None:
        self._request, self._generator = request, np.random.default_rng(seed)
        groups = request.partition.groups
        self.groups = {group: self._sample(groups[group]) for group in ("target", *STAYING) if groups[group]}
        self._others, records = Counterfactuals(request, self._generator), request.hierarchy.records
        target = self.groups["target"]
        self._kinds = [
            places
            for with_image in (True, False)
            if (places := [n for n, index in enumerate(target) if (records[index].image is not None) == with_image])
        ]
        """Places in the target's questions: of those with an image, and of those without."""

    def warn_if_few(self) -> None:
        """Say by how few questions a setting is chosen, where the figures can mean little."""
        few = [f"{len(indices)} of {group}" for group, indices in self.groups.items() if len(indices) < MIN_QUESTIONS]
        if few:
            message = f"few questions to choose by: {', '.join(few)}; give more with split 'validation', or 'train'"
            warnings.warn(message, ChipWarning, stacklevel=2)

    def ask(self, score: Callable[[Sequence[Record]], Scores]) -> dict[str, Answers]:
        """What is answered, by group."""
        records = self._request.hierarchy.records
        scores = score([records[i] for indices in self.groups.values() for i in indices])
        exact, probability = iter(scores.exact_match.tolist()), iter(scores.answer_probability.tolist())
        return {
            group: Answers(*(np.array(list(islice(values, len(indices)))) for values in (exact, probability)))
            for group, indices in self.groups.items()
        }

    def never_trained(self, score: Callable[[Sequence[Record]], Scores]) -> NDArray[np.float64]:
        """Answer probability of each question of the target, had the model never been trained on it."""
        chance = chance_accuracy(self._request.hierarchy, self._request.partition).tolist()

        def measure(questions: Sequence[Record]) -> list[float]:
            values: list[float] = score(questions).answer_probability.tolist()
            return values

        return np.array(self._others.estimate(self.groups["target"], measure, chance, LETTER_TOKENS))

    def excess(self, probability: NDArray[np.float64], never: NDArray[np.float64]) -> float:
        """By how much the target's questions (n,) are above never trained on, of the kind where that is more."""
        return max(float((probability - never)[places].mean()) for places in self._kinds)

    def _sample(self, indices: Sequence[int]) -> list[int]:
        records = self._request.hierarchy.records
        validation = [i for i in indices if records[i].split == VALIDATION]
        candidates = validation or [i for i in indices if not records[i].held_out] or list(indices)
        return sorted(self._generator.permutation(candidates)[:MAX_QUESTIONS].tolist())
