"""The default: gates for what the target's own pictures show, and for names; a linear edit for all else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.methods.base import Method, Plan
from chip.methods.gated import Gated
from chip.methods.gated_text import GatedText
from chip.methods.shielded_gated_text import Linear, ShieldedGatedText
from chip.model.target_modules import TargetModule

if TYPE_CHECKING:
    from chip.model.loading import VLM


MOST_PICTURES = 16
"""Of the target's own, for which gates are tried: each takes many of a connector's hidden units."""


@dataclass(frozen=True)
class Combined(ShieldedGatedText, Gated):  # type: ignore[misc]  # it only has the settings of all
    """`Gated` for what hangs on pictures that are the target's alone, and `ShieldedGatedText` for all else.

    Gates in a connector take from those who stay nothing that can be measured, where they meet the target's pictures;
    whether they do is seen by asking. Where they leave more of what is asked with these pictures than a model that was
    never trained on it would say, `ShieldedGatedText` edits the model as it was, and of the two that one stays which
    leaves and costs less. It takes all where gates cost more than an edit may, where the target has more than
    `MOST_PICTURES`, in a connector that has no place for gates, and where somebody gives the linear edit's strength.
    """

    name: ClassVar[str] = "combined"
    version: ClassVar[int] = 2
    target_modules: ClassVar[tuple[str, ...]] = ShieldedGatedText.target_modules
    optional_steps: ClassVar[tuple[str, ...]] = (Gated.name, GatedText.name)

    @property
    def steps(self) -> tuple[Method, ...]:
        return *self.only(ShieldedGatedText).steps, self.only(Gated)

    def plans(self, vlm: VLM, request: ForgetRequest, target_modules: Sequence[TargetModule]) -> Sequence[Plan]:
        """Gates come last: a linear edit behind them would change what they give."""
        without, gates = self.only(ShieldedGatedText).plan(vlm, request, target_modules), self.only(Gated)
        pictures = gates.own_pictures(request)
        few = 0 < len(pictures) <= MOST_PICTURES
        if self.search is None or not few or gates.unfit(vlm, target_modules) is not None:
            return (Plan(without),)

        def shows_own(record: Record) -> bool:
            return record.image in pictures

        pictured = request.part(shows_own)
        others = [
            (step, part.part(lambda record: not shows_own(record)) if isinstance(step, Linear) else part)
            for step, part in without
        ]
        worked = [(step, part) for step, part in others if step.has_work(part)]
        return Plan((*worked, (gates, pictured)), enough_for=pictured), Plan(without)
