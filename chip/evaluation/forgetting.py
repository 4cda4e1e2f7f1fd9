"""What is made of scores: gaps, worst cases, leaks, and one number for forgetting and keeping."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

Array = NDArray[np.float64]


def worst(original: float, paraphrased: float, forgotten: bool) -> float:
    """The worse of what a group scores on trained and on paraphrased questions: higher if it was to be forgotten."""
    return max(original, paraphrased) if forgotten else min(original, paraphrased)


def recovered_gap(gap: float, of_retrained: float) -> float:
    """The part of what retraining without the target buys: 1 is as good as retraining, 0 is nothing.

    A gap is what the siblings score above the target. NaN where retraining opens none.
    """
    return gap / of_retrained if of_retrained > 0 else float("nan")


def harmonic_mean(forgetting: float, retention: float) -> float:
    """2 f r / (f + r); 0 as soon as one of them is.

    `forgetting` is 1 − the target's exact match, `retention` the exact match of all that is retained. It is not the
    Unlearning Efficiency Score of MLLMU-Med (arXiv 2508.04192), whose formula is not public.
    """
    return 2 * forgetting * retention / (forgetting + retention) if forgetting + retention > 0 else 0.0


def truth_ratio(answer: float, perturbed: Array) -> float:
    """How probable wrong answers are next to the right one.

    R_truth of TOFU (Maini et al. 2024, arXiv 2401.06121, Eq. 1): the mean over wrong answers â of P(â|q)^(1/|â|),
    divided by P(ã|q)^(1/|ã|) of the right one. Small where the model knows, about 1 where it does not.

    Args:
        answer: length-normalized probability of the right answer. TOFU takes a paraphrase ã of it, so that the very
            words that were trained do not count; here the held-out wordings of the question do that.
        perturbed: (m,), the same of wrong ones. NaN of none.
    """
    if len(perturbed) == 0:
        return float("nan")
    return float(perturbed.mean() / max(answer, np.finfo(np.float64).tiny))


def forget_quality(ratios: Array, retrained: Array) -> tuple[float, float]:
    """KS statistic and p-value (two samples, two sides) of truth ratios against the retrained model's.

    p is TOFU's forget quality (section 2.2): above 0.05 the two models cannot be told apart by it.
    """
    result = ks_2samp(ratios, retrained)
    return float(result.statistic), float(result.pvalue)


def leak_at_k(right: Array) -> Array:
    """(n,): 1 where any of a record's answers is right; right (n, k), 1 or 0."""
    return np.asarray(right.any(axis=1), dtype=np.float64)


def expected_leak(probability: Array, k: int) -> Array:
    """What leak@k is on average over all draws: 1 − (1 − p)^k, p the probability of the whole answer and its end."""
    leak: Array = -np.expm1(k * np.log1p(-np.minimum(probability, 1 - np.finfo(np.float64).epsneg)))
    return leak
