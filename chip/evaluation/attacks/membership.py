"""Membership inference: can one tell, from how a model takes an answer, that it was trained on it?

An area under the curve of 0.5 is a guess. Below the retrained model's, the target stands out by what was done to it:
over-forgetting, and no success.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from chip.data.answers import alternatives
from chip.data.record import Record
from chip.evaluation.answer_tokens import AnswerTokens, answer_tokens
from chip.evaluation.attacks.base import Attack
from chip.evaluation.context import EvalContext

Array = NDArray[np.float64]

LOWEST = 0.2  # of the tokens, as in both papers
FALSE_POSITIVES = 0.01


def lowest(values: Array, share: float = LOWEST) -> float:
    """Mean of the lowest `share` of values (t,), at least of one."""
    count = max(1, int(share * len(values)))
    return float(np.sort(values)[:count].mean())


def loss(tokens: AnswerTokens) -> float:
    """Mean log-probability of the tokens: the loss with its sign turned, so that higher means trained."""
    return float(tokens.log_probability.mean())


def min_k(tokens: AnswerTokens) -> float:
    """Min-K% Prob: mean log-probability of the least probable tokens (Shi et al. 2023, arXiv 2310.16789, Eq. 1)."""
    return lowest(tokens.log_probability)


def min_k_plus_plus(tokens: AnswerTokens) -> float:
    """Min-K%++: the same of (log p − μ) / σ (Zhang et al. 2024, arXiv 2404.02936, the equations that define
    Min-K%++ for a token and for a sequence)."""
    return lowest(tokens.standardized)


SCORES: Mapping[str, Callable[[AnswerTokens], float]] = {
    "loss": loss,
    "min_k": min_k,
    "min_k_plus_plus": min_k_plus_plus,
}
"""Higher where the record was trained on."""


class Membership(Attack):
    name = "membership"
    help = "Whether the model's certainty tells that it was trained on an answer."
    standard = True

    def run(self, context: EvalContext) -> None:
        others = never_trained(context.records, context.members, context.unseen, context.seed)
        questions = [*(context.records[index] for index in context.members), *others]
        with context.progress(self.name, len(questions)) as advance:
            tokens = answer_tokens(context.vlm, questions, context.batch_size, advance)
        count = len(context.members)
        for name, score in SCORES.items():
            values = np.array([score(each) for each in tokens])
            context.outputs.membership[name] = values[:count], values[count:]
        context.outputs.never_trained.extend(others)


def auc(members: Array, others: Array) -> float:
    """Area under the ROC curve: how often a member scores above another one, ties counting half (Mann & Whitney).

    By ranks: (R − m (m + 1) / 2) / (m n), R the sum of the ranks of the m members among all, n the others.
    """
    m, n = len(members), len(others)
    ranks = rankdata(np.concatenate((members, others)))
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def auc_samples(members: Array, others: Array, member_weights: Array, other_weights: Array) -> Array:
    """(count,): the area in each bootstrap sample, weights (count, m) and (count, n)."""
    above = (members[:, None] > others) + 0.5 * (members[:, None] == others)  # (m, n)
    won = ((member_weights @ above) * other_weights).sum(1)
    samples: Array = won / (member_weights.sum(1) * other_weights.sum(1))
    return samples


def true_positives(members: Array, others: Array, false_positives: float = FALSE_POSITIVES) -> float:
    """The largest share of members above a threshold that at most `false_positives` of the others are above."""
    allowed = int(false_positives * len(others))
    threshold = np.sort(others)[::-1][allowed]
    return float((members > threshold).mean())


def never_trained(
    records: Sequence[Record], members: Sequence[int], unseen: Sequence[Record], seed: int
) -> list[Record]:
    """A record that was never trained on for each member, alike in all but that.

    From `unseen` one that asks the same question, where there is any, else one of the same task; all of them before any
    a second time. Where nothing is unseen: the member itself with a wrong answer, one that was right at another node;
    members whose question nobody else was asked have none.
    """
    if not unseen:
        wrong = alternatives(records, members, 1, seed)
        return [replace(records[index], answer=answer) for index in members for answer in wrong[index]]
    pool: dict[str | None, list[Record]] = {}
    for i in np.random.default_rng(seed).permutation(len(unseen)).tolist():
        for key in _matching_keys(unseen[i]):
            pool.setdefault(key, []).append(unseen[i])
    endless = {key: cycle(several) for key, several in pool.items()}
    matched = []
    for index in members:
        matched.append(next(endless[next(key for key in _matching_keys(records[index]) if key in endless)]))
    return matched


def _matching_keys(record: Record) -> tuple[str | None, ...]:
    """By what a record is matched, the best first."""
    return f"question {record.question}", f"task {record.task}", None
