"""Two edits in a row: a linear one takes what is near the target, gates take what is left of its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

from chip.methods.base import Method
from chip.methods.gated import Gated
from chip.methods.settings import settings_of
from chip.methods.shielded import Shielded

M = TypeVar("M", bound=Method)


@dataclass(frozen=True)
class ShieldedGated(Shielded, Gated):  # type: ignore[misc]  # it only has the settings of both; its steps do the work
    """`Shielded`, and in the model that it leaves `Gated`.

    The linear edit reaches the text model, and altered forms of a picture that no gate knows; the gates reach what it
    has to leave for the sake of those who stay.
    """

    name: ClassVar[str] = "shielded+gated"
    version: ClassVar[int] = 1

    @property
    def steps(self) -> tuple[Method, ...]:
        return self._only(Shielded), self._only(Gated)

    def _only(self, method: type[M]) -> M:
        return method(**{name: getattr(self, name) for name in settings_of(method)})
