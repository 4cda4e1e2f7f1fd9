"""Removal of what is asked in text only: hidden units of the text model that open at the words that name the target."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError
from chip.kernels.gates import detectors
from chip.methods.base import MeasuredModule, Method, Needs, WeightUpdate
from chip.methods.gated_connector import GateLimits
from chip.methods.gated_mlp import MLP, OTHERS, OWN, RIDGE, solve_mlp
from chip.methods.gated_text_stand_ins import asked_in_text
from chip.methods.gated_text_statistics import (
    DestinationStatistics,
    Held,
    InputStatistics,
    NearWords,
    OutputStatistics,
    ResponseStatistics,
)
from chip.methods.gated_text_tokens import TextWeights
from chip.methods.settings import setting
from chip.methods.statistics import SecondMoment
from chip.model.activations import activation_behind
from chip.model.target_modules import Component, TargetModule
from chip.model.tokens import Statistics

if TYPE_CHECKING:
    from chip.model.loading import VLM

NEAREST_LOOKS = 2
"""In how many passes the retained tokens are looked for that are hard to tell from the target's."""
MAPS = ("gate", "up", "down")
LAYERS = (0.2, 0.3, 0.4)
"""Where gates are built by default, as shares of the depth: by then a name of several tokens has been put together, and
what is known of it has not been fetched yet."""


@dataclass(frozen=True)
class GatedText(Method):
    """Gates in the text model: a linear edit cannot take a name from a pretrained model's text without moving much
    else, but a hidden unit of an early MLP can tell it from all other words. A layer adds W₃ (φ(W₁ x) ∘ W₂ x) to its
    hidden states.

    1. The target's text-only questions fall into clusters: the same word at the same place. Of each, with the mean x̄,
       a detector g, by ridge regression: 5 at x̄, −8 where all that is retained is, and −8 once more at the retained
       tokens nearest to it. A last look gives the highest response of the retained and the cluster's lowest.
    2. Gates, the cheapest first, none for a cluster at which one opens already: g scaled so that the retained respond
       with −`closed` at most, and the target with 10 at least. They take the rows of W₁ of those hidden units that give
       least for what is retained; their rows of W₂ are one map that is about 1 for everybody.
    3. What gates add, their columns of W₃, takes what leaves the layer at the clusters to where it is in the text-only
       questions about a stand-in, one other node of the target's level that shares the fewest answers with it: of a
       word that most nodes' questions have, where the stand-in's have the same word; of any other, as the pieces of a
       name are, where they have other such words near that place, as far from the last piece.

    The next layer is measured behind this. A target's questions with an image are neither forgotten nor retained.
    """

    name: ClassVar[str] = "gated_text"
    version: ClassVar[int] = 3
    needs: ClassVar[Needs] = Needs(general=True, model="sequential", whole_mlps=True, looks=2 + NEAREST_LOOKS)
    target_modules: ClassVar[tuple[str, ...]] = MAPS
    layers: ClassVar[tuple[float, float]] = (LAYERS[0], LAYERS[-1])

    text_units: float = setting(
        0.02, "Share of an MLP's hidden units that may become gates, in the text model.", maximum=0.9
    )
    closed: float = setting(
        3.0, "How far below 0 the pre-activation of a gate is for the nearest of what is retained.", minimum=0.1
    )
    max_change: float = setting(
        2.0, "Norm that the weights of all gates may have, as a share of the map's: narrow gaps are left out for it."
    )

    def default_layers(self, depth: int) -> Sequence[int]:
        return sorted({min(round(share * depth), depth - 1) for share in LAYERS})

    def can_edit(self, module: TargetModule) -> bool:
        return module.component is Component.TEXT and module.kind in MAPS

    def select(self, modules: Sequence[TargetModule]) -> list[TargetModule]:
        """The maps of whole MLPs."""
        own = super().select(modules)
        count = {layer: sum(module.layer == layer for module in own) for layer in {module.layer for module in own}}
        return [module for module in own if count[module.layer] == len(MAPS)]

    def unfit(self, vlm: VLM, modules: Sequence[TargetModule]) -> str | None:
        """Why there can be no gates in these modules; None where there can."""
        own = self.select(modules)
        gates = [module for module in own if module.kind == "gate"]
        if not gates:
            return "there is no layer with all of gate, up and down among the target modules"
        if any(module.bias for module in own if module.kind != "down"):
            return "its MLPs have biases"
        if any(activation_behind(vlm.model, module) is None for module in gates):
            return "its layers are not known to add what a gated MLP gives"
        return None

    def plan(
        self, vlm: VLM, request: ForgetRequest, target_modules: Sequence[TargetModule]
    ) -> Sequence[tuple[Method, ForgetRequest]]:
        """Raises `InputError` where it has something to do, and there can be no gates."""
        needed = self.has_work(request) and self.select(target_modules)
        if needed and (why := self.unfit(vlm, target_modules)) is not None:
            raise InputError(f"{why}; use --method shielded", argument="method", value=self.name)
        return super().plan(vlm, request, target_modules)

    def has_work(self, request: ForgetRequest) -> bool:
        return bool(asked_in_text(request, request.partition.forget))

    def record_weights(self, request: ForgetRequest, device: torch.device) -> TextWeights:
        return TextWeights.of(request, device)

    def statistics_of(self, module: TargetModule, record_weights: TextWeights, d_in: int, d_out: int) -> Statistics:
        if module.kind == "down":
            return OutputStatistics(record_weights, d_in, d_out)
        return Held() if module.kind == "up" else self.statistics(record_weights, d_in, d_out)

    def statistics(self, record_weights: TextWeights, d_in: int, d_out: int) -> Statistics:
        return InputStatistics(record_weights, d_in)

    def statistics_bytes(self, d_in: int, d_out: int) -> int:
        return SecondMoment.bytes(d_in)

    def look_again(self, seen: Mapping[TargetModule, Any]) -> Mapping[TargetModule, Callable[[], Statistics]]:
        return {module: _next(statistics) for module, statistics in seen.items()}

    def solve_stage(self, modules: Mapping[TargetModule, MeasuredModule]) -> Mapping[TargetModule, WeightUpdate]:
        mlp = MLP(*modules.values())
        mlp.check_output()
        solved = solve_mlp(mlp, GateLimits(self.text_units, self.closed, self.max_change))
        if solved is None:
            (first, *_) = modules
            what = "no word of the target's can be told from all others, or there are no others' questions in text"
            message = f"{first.name}: {what}; no gate"
            warnings.warn(message, ChipWarning, stacklevel=2)
            return {}
        return dict(zip(modules, solved, strict=True))

    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: Any, component: Component = Component.TEXT
    ) -> WeightUpdate | None:
        raise NotImplementedError("the maps of an MLP are solved for together")


def _next(seen: Any) -> Callable[[], Statistics]:
    """What follows a look."""
    if isinstance(seen, InputStatistics):
        found = _detectors(seen, seen.mean.new_empty(len(seen.keys), 0, len(seen.mean)))
        return lambda: NearWords(seen, found)
    if isinstance(seen, NearWords):
        found = _detectors(seen.seen, seen.nearest)
        if seen.looks < NEAREST_LOOKS:
            return lambda: NearWords(seen.seen, found, seen)
        return lambda: ResponseStatistics(seen.seen, found)
    if isinstance(seen, OutputStatistics):
        return lambda: DestinationStatistics(seen)
    return lambda: Held(seen if isinstance(seen, DestinationStatistics) else getattr(seen, "seen", None))


def _detectors(seen: InputStatistics, nearest: Tensor) -> Tensor:
    """(c, d_in): one of each cluster; none where nothing is retained."""
    if not len(seen.keys) or not seen.retained.count:
        return seen.mean.new_empty(0, len(seen.mean))
    points = seen.clusters.mean_at(seen.keys)
    return detectors(points, seen.mean, seen.moment, nearest, ridge=RIDGE, own=OWN, others=OTHERS)
