"""What an edit did, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chip.evaluation.summary import GroupResult
from chip.methods.search import Choice
from chip.report.outcome import Outcome


@dataclass(frozen=True)
class EditReport:
    """What an edit did, measured on the checkpoint that was written."""

    method: str
    settings: Mapping[str, Any]
    label: str | None
    output: str | None
    """The written folder; None for a dry run."""
    seconds: float
    shares_images: bool
    """Whether questions about one image ran it once together, or each on its own, as in families where it sees them."""
    relative_change: Mapping[str, float]
    """Name on disk of each changed tensor -> ‖W′ − W‖ / ‖W‖ (Frobenius), after rounding."""
    remaining: Mapping[str, float]
    """Name on disk -> ‖QᵀW′‖ / ‖QᵀW‖ as written, where the method takes the directions Q out of W."""
    groups: Mapping[str, Mapping[str, GroupResult]]
    outcome: Outcome
    choice: Choice | None = None
    """How the setting that nobody gave was found."""
    left_out: tuple[str, ...] = ()
    """Files of the source that were not copied: what may hold the weights in another form."""

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "label": self.label,
            "output": self.output,
            "seconds": self.seconds,
            "shares_images": self.shares_images,
            "changed_tensors": sorted(self.relative_change),
            "relative_change": dict(self.relative_change),
            "remaining": dict(self.remaining),
            "left_out": list(self.left_out),
            "choice": None if self.choice is None else self.choice.to_json(),
            "outcome": self.outcome.to_json(),
            "groups": {
                group: {split: result.to_json() for split, result in results.items()}
                for group, results in self.groups.items()
            },
        }
