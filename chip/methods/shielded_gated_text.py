"""Two edits in a row: a linear one, and gates for what it has to leave of the target in text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chip.methods.base import Method
from chip.methods.gated_text import GatedText
from chip.methods.shielded import Shielded
from chip.model.target_modules import TargetModule


@dataclass(frozen=True)
class _Linear(Shielded):
    """`Shielded`, which leaves the projections to the gates that only these change."""

    def can_edit(self, module: TargetModule) -> bool:
        return module.kind not in ("gate", "up")


@dataclass(frozen=True)
class ShieldedGatedText(Shielded, GatedText):  # type: ignore[misc]  # it only has the settings of both
    """`Shielded`, and in the model that it leaves `GatedText`, where the target has text-only records.

    The linear edit takes what hangs on the picture. What is asked by name it has to leave where a pretrained model's
    text is protected; gates reach that.
    """

    name: ClassVar[str] = "shielded+gated_text"
    version: ClassVar[int] = 1
    target_modules: ClassVar[tuple[str, ...]] = (*Shielded.target_modules, "gate", "up")

    @property
    def steps(self) -> tuple[Method, ...]:
        return self.only(_Linear), self.only(GatedText)
