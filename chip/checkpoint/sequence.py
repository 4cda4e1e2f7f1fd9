"""Edits of edited checkpoints: how many there were, of which weights, and how far from the original's they can be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot
from typing import Any

MAX_DRIFT = 8.0
"""`EditSequence.total` above which there is a warning: in `benchmarks.sequences` others had lost 0.03 by then."""


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
    """Name on disk of each tensor that any edit has changed -> how far; None where an earlier receipt has no norms."""

    @property
    def total(self) -> float | None:
        """The bound on ‖W_n − W_0‖ over all changed tensors together, as a share of their ‖W_0‖."""
        if self.drift is None:
            return None
        bound = hypot(*(each.bound for each in self.drift.values()))
        norm = hypot(*(each.norm for each in self.drift.values()))
        return bound / norm if norm else None

    @property
    def worst(self) -> tuple[str, float] | None:
        """The tensor of which the bound is the largest share of its own ‖W_0‖, and that share."""
        shares = {name: each.bound / each.norm for name, each in (self.drift or {}).items() if each.norm}
        return max(shares.items(), key=lambda item: item[1], default=None)

    def to_json(self) -> dict[str, Any]:
        """What a program needs to know of it."""
        return {"number": self.number, "chain": self.chain, "total": self.total, "worst": self.worst}


def next_drift(
    before: Mapping[str, Drift], relative_change: Mapping[str, float], norms: Mapping[str, float]
) -> dict[str, Drift]:
    """`EditSequence.drift` behind one edit more.

    Args:
        before: of the edits so far.
        relative_change: ‖W′ − W‖ / ‖W‖ of each tensor that the edit changes.
        norms: ‖W‖ of the same tensors.
    """
    drift = dict(before)
    for name, change in relative_change.items():
        earlier = drift.get(name, Drift(0.0, norms[name]))
        drift[name] = Drift(earlier.bound + change * norms[name], earlier.norm)
    return drift


def weights_digest(files: Mapping[str, str]) -> str:
    """One digest for all weights of a folder: what `sha256sum *.safetensors | sha256sum` prints.

    Args:
        files: path relative to the folder -> SHA-256; other files count nothing.
    """
    lines = (f"{files[name]}  {name}\n" for name in sorted(files) if name.endswith(".safetensors"))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
