"""Edits of edited checkpoints: how many there were, of which weights, and how far from the original's they can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot
from typing import Any, Self

from chip.checkpoint.field_types import check_types

MAX_DRIFT = 8.0
"""`EditSequence.total` above which there is a warning: in `benchmarks.sequences` others had lost 0.01 to 0.02 then."""


@dataclass(frozen=True)
class Spent:
    """What the edits before this one have cost those who stay, since the model was the original."""

    edits: int = 0
    """How many there were."""
    lost: float = 0.0
    """Of the mean answer probability of trained questions, all edits together; 0 or more."""


@dataclass(frozen=True)
class Drift:
    """How far one tensor can be from what it was before the first edit. Frobenius norms."""

    bound: float
    """Σ ‖W_i − W_{i−1}‖ over the edits, which ‖W_n − W_0‖ is no more than."""
    norm: float
    """‖W_0‖."""


@dataclass(frozen=True)
class EditSequence:
    """Which edit of a sequence this is. A sequence begins with weights that no edit has made."""

    number: int
    """1 for the first edit."""
    chain: list[str]
    """`weights_digest` of the original and of each earlier result, in their order; the last is the source's."""
    norms: dict[str, float]
    """Name on disk of each tensor that this edit changes -> ‖W‖ before it."""
    drift: dict[str, Drift] | None
    """Name on disk of each tensor that any edit has changed -> how far; None where nothing bounds it: an earlier
    receipt has no norms, a tensor was zero, or the edit is an adapter, whose receipt has no tensors."""

    @property
    def total(self) -> float | None:
        """The bound on ‖W_n − W_0‖ over all changed weights together, as a share of their ‖W_0‖; biases, which are near
        zero in many models and which gates need, apart."""
        if self.drift is None:
            return None
        weights = [each for name, each in self.drift.items() if not name.endswith(".bias")]
        bound, norm = hypot(*(each.bound for each in weights)), hypot(*(each.norm for each in weights))
        return bound / norm if norm else None

    @property
    def worst(self) -> tuple[str, float] | None:
        """The weight of which the bound is the largest share of its own ‖W_0‖, and that share."""
        weights = {name: each for name, each in (self.drift or {}).items() if not name.endswith(".bias")}
        shares = {name: each.bound / each.norm for name, each in weights.items() if each.norm}
        return max(shares.items(), key=lambda item: item[1], default=None)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Raises `TypeError` or `LookupError` where a field is missing, unknown, or of another type."""
        drift = content["drift"]
        read = None if drift is None else {name: Drift(**each) for name, each in drift.items()}
        sequence = cls(**{**content, "drift": read})
        for part in (sequence, *(read or {}).values()):
            check_types(part)
        if not all(isinstance(norm, float) for norm in sequence.norms.values()):
            raise TypeError("norms")
        return sequence

    def to_json(self) -> dict[str, Any]:
        """What a program needs to know of it."""
        return {"number": self.number, "chain": self.chain, "total": self.total, "worst": self.worst}


def next_drift(
    before: Mapping[str, Drift], relative_change: Mapping[str, float], norms: Mapping[str, float]
) -> dict[str, Drift] | None:
    """`EditSequence.drift` behind one edit more.

    Args:
        before: of the edits so far.
        relative_change: ‖W′ − W‖ / ‖W‖ of each tensor that the edit changes.
        norms: ‖W‖ of the same tensors.
    """
    if not all(norms[name] for name in relative_change):  # the change is no share of nothing
        return None
    drift = dict(before)
    for name, change in relative_change.items():
        earlier = drift.get(name, Drift(0.0, norms[name]))
        drift[name] = Drift(earlier.bound + change * norms[name], earlier.norm)
    return drift
