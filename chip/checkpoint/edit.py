"""An edit as its receipt tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Edit:
    """What was done. A method's settings are recorded under the names that they had in its version of chip."""

    method: str
    settings: Mapping[str, Any]
    seed: int | None
    """Of the random choices; None where the method makes none."""
    relative_change: Mapping[str, float]
    """Name on disk -> ‖W′ − W‖ / ‖W‖ (Frobenius), after rounding."""
    remaining: Mapping[str, float]
    """Name on disk -> ‖QᵀW′‖ / ‖QᵀW‖ as written, where the method takes the directions Q out of W."""
    label: str | None = None
    """What the user calls the request."""
    version: int | None = None
    """Of the method."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, so that it can be done again; nothing that names anybody."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """What it ran with: versions, device, dtype."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What was measured before and after."""
    general_digest: bytes | None = None
    """Of the general data that was protected; None where there was none."""
    measured_on: Mapping[str, str] | None = None
    """As `Receipt` has it."""
