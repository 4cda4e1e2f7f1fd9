"""What an edit did, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from chip.checkpoint.sequence import EditSequence, Spent
from chip.evaluation.summary import GroupResult
from chip.general.loss import GeneralLoss
from chip.methods.trial import Choice
from chip.report.outcome import Outcome


@dataclass(frozen=True)
class Sampled:
    """What was drawn of more records than an edit goes by, or asks."""

    records: int
    """All that there are."""
    edited_by: int
    """Those whose statistics the edit is made of."""
    asked: int
    """Those that were asked before and after."""
    seed: int
    intervals: Mapping[str, tuple[float, float]]
    """Group that was not asked as a whole -> 95 % interval of its exact match, after the edit where it was written."""


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
    general: GeneralLoss | None = None
    """What held-out general data has lost; None where there is none."""
    general_note: str | None = None
    """What general data was protected, in words; None where none was asked for."""
    general_digest: bytes | None = None
    """Of the general data that was protected. It is written with a key alone: see `Receipt.general`."""
    sampled: Sampled | None = None
    """None where all records took part."""
    left_out: tuple[str, ...] = ()
    """Files of the source that were not copied: what may hold the weights in another form."""
    version: int | None = None
    """Of the method."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, nodes and files apart; see `chip.request_checks.Arguments`."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions of python, torch and transformers, device, dtype, and number of processes."""
    sequence: EditSequence | None = None
    """Which edit this is, where an edited checkpoint is edited again; None where nothing was written."""
    spent: Spent = field(default_factory=Spent)
    """What the edits before this one have cost those who stay."""
    measured_on: Mapping[str, str] | None = None
    """File -> SHA-256 of the copy that the statistics were measured on; None where it was the model itself."""

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
            "general": None if self.general is None else self.general.to_json(),
            "general_note": self.general_note,
            "sampled": None if self.sampled is None else asdict(self.sampled),
            "left_out": list(self.left_out),
            "version": self.version,
            "arguments": dict(self.arguments),
            "environment": dict(self.environment),
            "sequence": None if self.sequence is None else self.sequence.to_json(),
            "spent": asdict(self.spent),
            "measured_on": None if self.measured_on is None else dict(self.measured_on),
            "choice": None if self.choice is None else self.choice.to_json(),
            "outcome": self.outcome.to_json(),
            "groups": {
                group: {split: result.to_json() for split, result in results.items()}
                for group, results in self.groups.items()
            },
        }
