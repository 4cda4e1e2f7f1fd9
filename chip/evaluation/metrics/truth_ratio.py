"""The truth ratio, and the forget quality that is made of it, both of TOFU (Maini et al. 2024, arXiv 2401.06121)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from chip.data.answers import alternatives
from chip.evaluation.config import EvalConfig
from chip.evaluation.context import EvalContext
from chip.evaluation.rows import NO_ATTACK

Array = NDArray[np.float64]


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


def measure_truth_ratio(context: EvalContext, config: EvalConfig) -> None:
    """`truth_ratio` of the target's records, against what the same questions got at other nodes."""
    target = config.groups["target"]
    wrong = alternatives(config.records, target, config.wrong_answers, config.seed)
    answer = context.outputs.values[NO_ATTACK, "answer_probability"]
    perturbed = context.answer_probabilities(wrong, "wrong answers")
    ratios = {i: truth_ratio(float(answer[i]), probabilities) for i, probabilities in perturbed.items()}
    context.put(NO_ATTACK, "truth_ratio", ratios)
