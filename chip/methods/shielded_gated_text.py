"""A linear edit, and gates for what is asked by name, where a linear edit would harm the model's text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from chip.data.request import ForgetRequest
from chip.errors import ChipWarning
from chip.methods.base import Method
from chip.methods.gated_text import GatedText
from chip.methods.shielded import Shielded
from chip.model.target_modules import TargetModule

if TYPE_CHECKING:
    from chip.model.loading import VLM


@dataclass(frozen=True)
class Linear(Shielded):
    """`Shielded`, which leaves the projections to the gates that only these change."""

    def can_edit(self, module: TargetModule) -> bool:
        return module.kind not in ("gate", "up")

    def has_work(self, request: ForgetRequest) -> bool:
        return any(not request.records[index].held_out for index in request.partition.forget)


@dataclass(frozen=True)
class ShieldedGatedText(Shielded, GatedText):  # type: ignore[misc]  # it only has the settings of both
    """`Shielded`; and in the model that it leaves `GatedText`, where that can do what a linear edit cannot.

    A linear edit does not take a name out of a language that is to be kept: a bound on general text leaves it no room.
    So where there is general data to keep, and the target has records with an image and without, the latter are the
    gates' alone, and the linear edit takes the others. Without general data, of a target that no image shows, and in a
    model that has no place for gates, the linear edit takes all.
    """

    name: ClassVar[str] = "shielded+gated_text"
    version: ClassVar[int] = 5
    target_modules: ClassVar[tuple[str, ...]] = (*Shielded.target_modules, "gate", "up")
    optional_steps: ClassVar[tuple[str, ...]] = (GatedText.name,)

    @property
    def steps(self) -> tuple[Method, ...]:
        return self.only(Linear), self.only(GatedText)

    def plan(
        self, vlm: VLM, request: ForgetRequest, target_modules: Sequence[TargetModule]
    ) -> Sequence[tuple[Method, ForgetRequest]]:
        linear, gates = self.only(Linear), self.only(GatedText)
        pictured = request.part(lambda record: record.image is not None)
        if not (request.general and gates.has_work(request) and linear.has_work(pictured)):
            return [(linear, request)]
        if (why := gates.unfit(vlm, target_modules)) is not None:
            message = f"what is asked in text only is left to the linear edit, which reaches little of it: {why}"
            warnings.warn(message, ChipWarning, stacklevel=2)
            return [(linear, request)]
        return [(linear, pictured), (gates, request)]
