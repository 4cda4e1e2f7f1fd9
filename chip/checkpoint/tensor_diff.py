"""What is measured of a tensor that differs between two checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

DIRECTIONS = (1, 8, 64)
"""Numbers of leading directions for which the share of a change is given."""
LARGEST_GRAM = 8192
"""Longest smaller side of a change whose singular values are taken: a Gram matrix of 512 MB, and one copy of it."""


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """How one tensor of `b` differs from the same tensor in `a`."""

    name: str
    """On disk in `a`."""
    shape: tuple[int, ...]
    dtype: str
    """As stored in `a`; as `A -> B` where `b` has another."""
    changed: bool
    """Whether the stored bytes, or the dtype, differ."""
    relative_change: float = 0.0
    """Frobenius norms, ‖b − a‖ / ‖a‖; infinite where a is zero and b is not."""
    largest_change: float = 0.0
    """Largest |b − a| of a single value."""
    effective_rank: float | None = None
    """Of b − a. None below two dimensions, where no value differs, where a difference is not finite, and where more
    than `LARGEST_GRAM` rows and as many columns enter."""
    rows_changed: float = 0.0
    """Share of rows (first dimension) in which a value differs."""
    energy: tuple[tuple[int, float], ...] = ()
    """(k, share of ‖b − a‖² in its k leading singular directions) for each of `DIRECTIONS`; none without a rank."""
    spectrum: tuple[float, ...] = ()
    """The leading singular values of b − a, descending, as many as the last of `DIRECTIONS`; none without a rank."""
    norm: float = 0.0
    """‖a‖ (Frobenius) over its finite values; 0 where unchanged, since what is equal is not measured."""
    change: float = 0.0
    """‖b − a‖ (Frobenius)."""
    name_in_b: str | None = None
    """On disk in `b`, where it has another name there."""


def ratio(change: float, norm: float) -> float:
    """change / norm of norms: 0 where nothing changed, infinite where something did and there was nothing."""
    if change == math.inf or (change and not norm):
        return math.inf
    return change / norm if change else 0.0
