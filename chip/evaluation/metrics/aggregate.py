"""What is made of means: the worse of two, gaps, and one number for forgetting and keeping."""

from __future__ import annotations


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
