"""A linear classifier of two models' answers, judged on prompts that it was not fitted to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Array = NDArray[np.float64]

FOLDS = 5
PENALTY = 1.0


def fit_logistic(features: Array, labels: Array, penalty: float = PENALTY) -> Array:
    """(features + 1,): weights and bias of least mean logistic loss plus penalty |weights|² / (2 n).

    Args:
        features: (n, features).
        labels: (n,), 1 or 0.
    """
    signs, count = 2 * labels - 1, len(labels)
    padded = np.hstack((features, np.ones((count, 1))))

    def loss(weights: Array) -> tuple[float, Array]:
        margins = signs * (padded @ weights)
        own = np.append(weights[:-1], 0.0)
        value = np.logaddexp(0, -margins).mean() + penalty * own @ own / (2 * count)
        return float(value), penalty * own / count - padded.T @ (signs * expit(-margins)) / count

    result: Array = minimize(loss, np.zeros(padded.shape[1]), jac=True, method="L-BFGS-B").x
    return result


def cross_validated_scores(first: Array, second: Array, seed: int, folds: int = FOLDS) -> tuple[Array, Array]:
    """(n,) each: how strongly a classifier takes each answer for one of the first model's.

    It was fitted to the other folds; both models' answers to a prompt are in one fold, so that no prompt tells.

    Args:
        first, second: (n, features) of two models, the rows in the same order.
    """
    count = len(first)
    fold = np.random.default_rng(seed).permutation(count) % min(folds, count)
    scores = np.zeros((2, count))
    for number in range(min(folds, count)):
        seen, held_out = fold != number, fold == number
        known = np.vstack((first[seen], second[seen]))
        mean, deviation = known.mean(0), known.std(0)
        scale = np.where(deviation > 0, deviation, 1.0)
        weights = fit_logistic((known - mean) / scale, np.repeat([1.0, 0.0], seen.sum()))
        for side, features in enumerate((first, second)):
            scores[side, held_out] = (features[held_out] - mean) / scale @ weights[:-1] + weights[-1]
    return scores[0], scores[1]
