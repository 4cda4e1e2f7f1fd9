"""Two edits in a row: a linear one takes what is near the target, gates take what is left of its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chip.methods.base import Method
from chip.methods.gated import Gated
from chip.methods.shielded import Shielded


@dataclass(frozen=True)
class ShieldedGated(Shielded, Gated):  # type: ignore[misc]  # it only has the settings of both; its steps do the work
    """`Shielded`, and in the model that it leaves `Gated`.

    The linear edit reaches the text model, and altered forms of a picture that no gate knows; the gates reach what it
    has to leave for the sake of those who stay.
    """

    name: ClassVar[str] = "shielded+gated"
    version: ClassVar[int] = 4

    @property
    def steps(self) -> tuple[Method, ...]:
        return self.only(Shielded), self.only(Gated)
