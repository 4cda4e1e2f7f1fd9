"""What a model showed when it was asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chip.data.record import Record

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EvalOutputs:
    """What one model showed. Values of a measure are by record, NaN where it was not asked."""

    values: dict[tuple[str, str], Array] = field(default_factory=dict)
    """(attack, measure) -> (records,)."""
    membership: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    """Score -> that of each member, that of each record never trained on."""
    never_trained: list[Record] = field(default_factory=list)
    """The latter, in their order."""
    features: dict[str, Array] = field(default_factory=dict)
    """What a classifier is told of its answers -> (answers, features); the rows of two models that were asked the same
    belong together."""
    general: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    """Measure of general ability -> its sum over each text or question, and how many tokens, or 1, that is of."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Attack, or a step of one, that could not be run -> why."""

    def put(self, attack: str, measure: str, values: Mapping[int, float], count: int) -> None:
        """Values by record, of `count` records."""
        full = np.full(count, np.nan)
        full[list(values)] = list(values.values())
        self.values[attack, measure] = full
