"""leak@k from more draws than k."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def leak_of(right: NDArray[Any], draws: int, k: int) -> Array:
    """(n,): leak@k from `draws` ≥ k answers, of which `right` (n,) are: 1 − C(draws − right, k) / C(draws, k).

    Unbiased, as pass@k is (Chen et al. 2021, arXiv 2107.03374, Eq. 1): over all draws its mean is 1 − (1 − p)^k. For
    k = `draws` it is 1 where any is right.
    """
    numbers = np.arange(draws, 0, -1)
    survives = np.clip(1 - k / numbers, 0.0, None)  # right answers are left out of k, one after the other
    kept = np.concatenate(([1.0], survives.cumprod()))
    leak: Array = 1 - kept[np.asarray(right, dtype=np.int64)]
    return leak
