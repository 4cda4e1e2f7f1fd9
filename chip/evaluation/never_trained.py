"""How many of the target's answers a model would give that was never trained on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from chip.data.chance import chance_accuracy
from chip.data.counterfactual import MAX_QUESTIONS, Counterfactuals
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.model.scoring import Scores


def never_trained_accuracy(request: ForgetRequest, score: Callable[[Sequence[Record]], Scores], seed: int = 0) -> float:
    """Exact match of the target's trained questions, estimated: they are asked about others (`Counterfactuals`).

    Args:
        score: asks the unedited model.
    """
    records, generator = request.hierarchy.records, np.random.default_rng(seed)
    trained = [i for i in request.partition.forget if not records[i].held_out]
    sample = sorted(generator.permutation(trained)[:MAX_QUESTIONS].tolist())
    chance = chance_accuracy(request.hierarchy, request.partition).tolist()
    others = Counterfactuals(request, generator)
    return fmean(others.estimate(sample, lambda questions: score(questions).exact_match.tolist(), chance))
