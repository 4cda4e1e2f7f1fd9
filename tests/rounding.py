"""How far two ways to compute the same numbers may come apart, whatever the processor."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDINGS = 64
"""In ε of the dtype. A sum of n ≤ 128 products (the widths of the models here) is off by about √n ≈ 10 ε, and the
errors of some 30 matrix products, one behind another, add up like a random walk: √30 · 10 ≈ 60 ε. Processors show
between 0 and 8. One weight of a layer that is off by one bit of bfloat16 moves a hidden state by more than 180."""


def assert_equal_but_for_rounding(actual: Tensor, expected: Tensor, roundings: float = ROUNDINGS) -> None:
    """The vectors (..., n) along the last dimension agree up to `roundings` · ε · ‖expected‖, ε of their dtype.

    An entry may be far smaller than the vector that it is of, and is off by what the whole vector's size explains:
    neither an absolute bound nor one relative to each entry holds on every processor.

    Raises `AssertionError` where shapes or dtypes differ, a number is not finite, or the vectors are further apart.
    """
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.isfinite().all()
    distance = torch.linalg.vector_norm(actual.double() - expected.double(), dim=-1)
    allowed = roundings * torch.finfo(expected.dtype).eps * torch.linalg.vector_norm(expected.double(), dim=-1)
    assert (distance <= allowed).all(), f"up to {float((distance / allowed).max()):.3g} times what rounding explains"
