"""What a method left of a target, as it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from chip.evaluation.rows import NO_ATTACK, ResultRow

NAN = float("nan")

EARLIER_SPLITS = {"rephrased": "paraphrased"}
"""What results stored earlier call a split -> what `chip.evaluation` calls it now."""

Figures = Mapping[tuple[str, str, str, str], tuple[float, float, float]]
"""(group, split, measure, attack) -> value, and the ends of its interval; NaN where there is none."""


@dataclass(frozen=True)
class Result:
    """What a method left of a target, and what that took."""

    version: int
    """The method's."""
    settings: Mapping[str, Any]
    attacked: bool
    seconds: float
    peak_bytes: float
    changed_weights: float
    figures: Figures
    error: str | None = None
    """Why there are no figures."""

    def value(self, group: str, split: str, measure: str, attack: str = NO_ATTACK) -> float:
        """NaN where it was not measured."""
        return self.figures.get((group, split, measure, attack), (NAN, NAN, NAN))[0]

    def to_json(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**plain, "figures": [[*key, *values] for key, values in self.figures.items()]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Result:
        figures = {tuple(map(current_name, row[:4])): tuple(row[4:]) for row in stored["figures"]}
        return cls(**{**stored, "figures": figures})


def current_name(stored: str) -> str:
    """Of a split, or of an attack, by itself or behind a measure; any other name is as it was stored."""
    return EARLIER_SPLITS.get(stored, stored.replace("quantisation: ", "quantization: "))


def figures(rows: Sequence[ResultRow]) -> Figures:
    return {(row.group, row.split, row.measure, row.attack): (row.value, row.low, row.high) for row in rows}
