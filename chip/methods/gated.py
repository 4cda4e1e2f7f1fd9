"""Removal where a linear edit has no room: hidden units of the connector that open for the target's image alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from chip.data.embedded_image import ImageSource
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError
from chip.kernels.gates import separating_directions, widest_directions
from chip.methods.base import MeasuredModule, Method, Needs, WeightUpdate
from chip.methods.gated_connector import GateLimits, Gates, check_activation, solve_connector
from chip.methods.gated_statistics import (
    GatedStatistics,
    GatedWeights,
    HighestStatistics,
    NearestStatistics,
    own_images,
    showing_own_images,
)
from chip.methods.gated_views import ALTERATIONS, altered_images
from chip.methods.settings import setting
from chip.methods.statistics import SecondMoment
from chip.model.activations import activation_behind
from chip.model.target_modules import Component, TargetModule
from chip.model.tokens import Statistics

if TYPE_CHECKING:
    from chip.model.loading import VLM

NO_PAIR = "gates need two linear maps with an activation between"
NEAREST_LOOKS = 3
"""In how many passes the nearest of what is retained are looked for: along Fisher's directions, then along those that
are the widest as far as is known."""
RIDGE = 1e-2
"""Of the directions along which the nearest of what is retained are looked for, as a share of C's mean diagonal."""


@dataclass(frozen=True)
class Gated(Method):
    """Gates: where the images that stay fill all directions of a connector, a linear map cannot take one of them out,
    but a hidden unit can tell its tokens apart: in many dimensions nearly every point lies outside the convex hull of
    all others. The connector is two linear maps with an activation φ between, y = W₂ φ(W₁ x + b₁) + b₂.

    1. For each of the target's image tokens x the direction w in which it stands farthest beyond the retained tokens
       that are nearest to it, and the highest response w·x_j of all retained tokens.
    2. Gates, those with the widest gaps first, none for a token at which one opens already: w scaled and shifted so
       that the pre-activation is −`closed` where the retained respond highest, and `opened` at x.
    3. They take the places of the hidden units that move the output of the retained least. W₂ and b₂ are fitted again
       without these: ridge regression on the moments of the retained.
    4. What gates add, their columns of W₂, takes the target's tokens to the outputs of another picture's at their
       place: ridge regression on the target's tokens. It is the retained picture whose questions share the fewest
       answers with the target's.

    So what is retained stays as it is up to the residual of step 3, however many tokens it has; nothing outside the
    connector changes; and what is asked without the image is not reached. Gates that answer to single wrong outputs
    were trained by Huang et al. (T-Patcher, arXiv 2301.09785); these are solved for, and replace units.
    """

    name: ClassVar[str] = "gated"
    version: ClassVar[int] = 2
    needs: ClassVar[Needs] = Needs(whole_connectors=True, looks=2 + NEAREST_LOOKS)
    target_modules: ClassVar[tuple[str, ...]] = ("connector",)
    layers: ClassVar[tuple[float, float]] = (0.0, 1.0)

    units: float = setting(
        0.25, "Share of a connector's hidden units that may become gates; higher covers more tokens.", maximum=0.9
    )
    views: float = setting(
        0.0,
        "In how many altered forms (crop, turns, brightness, JPEG) each of the target's images gets gates too.",
        maximum=len(ALTERATIONS),
    )
    closed: float = setting(
        3.0, "How far below 0 the pre-activation of a gate is for the nearest of what is retained.", minimum=0.1
    )
    max_change: float = setting(
        2.0, "Norm that the weights of all gates may have, as a share of the map's: narrow gaps are left out for it."
    )

    def can_edit(self, module: TargetModule) -> bool:
        return module.component is Component.CONNECTOR

    def unfit(self, vlm: VLM, modules: Sequence[TargetModule]) -> str | None:
        """Why there can be no gates in the connectors among these modules; None where there can."""
        own = self.select(modules)
        if not own:
            return "there is no connector among the target modules"
        for number in dict.fromkeys(module.connector for module in own):
            maps = [module for module in own if module.connector == number]
            if not any(
                first.shape(vlm.model)[0] == second.shape(vlm.model)[1]
                and activation_behind(vlm.model, first) is not None
                for first, second in pairwise(maps)
            ):
                return f"{maps[0].name}: {NO_PAIR}"
        return None

    def own_pictures(self, request: ForgetRequest) -> set[ImageSource | None]:
        """The images that are the target's alone, and that none of its records shows beside others."""
        records = request.records
        own = {records[index].image for index in showing_own_images(request) if not records[index].more_images}
        own -= {
            image for index in request.partition.forget if (more := records[index]).more_images for image in more.images
        }
        return own

    def extra_records(self, request: ForgetRequest) -> tuple[Record, ...]:
        """The target's own images, each in its altered forms."""
        records, forgotten = request.records, showing_own_images(request)
        first: dict[Hashable, Record] = {records[index].image: records[index] for index in reversed(forgotten)}
        return tuple(
            Record(first[image].question, first[image].answer, first[image].path, altered, where=first[image].where)
            for image in own_images(request, forgotten)
            for altered in altered_images(first[image], round(self.views))
        )

    def record_weights(self, request: ForgetRequest, device: torch.device) -> GatedWeights:
        return GatedWeights.of(request, round(self.views), device)

    def statistics(self, record_weights: GatedWeights, d_in: int, d_out: int) -> GatedStatistics:
        return GatedStatistics(record_weights, d_in)

    def statistics_bytes(self, d_in: int, d_out: int) -> int:
        return 2 * SecondMoment.bytes(d_in)

    def look_again(self, seen: Mapping[TargetModule, Any]) -> Mapping[TargetModule, Callable[[], Statistics]]:
        *_, last = seen
        return {module: _next(statistics, module == last) for module, statistics in seen.items()}

    def solve_stage(self, modules: Mapping[TargetModule, MeasuredModule]) -> Mapping[TargetModule, WeightUpdate]:
        first, second = _pair(modules)
        limits = GateLimits(self.units, self.closed, self.max_change)
        if not len(modules[first].statistics.directions):
            message = f"{first.name}: no image of the target's own to tell from what is retained; no gate"
            warnings.warn(message, ChipWarning, stacklevel=2)
            return {}
        check_activation(modules[first], modules[second], limits)
        solved = solve_connector(modules[first], modules[second], limits)
        statistics: HighestStatistics = modules[first].statistics
        if solved is None:
            message = f"{first.name}: nothing of the target's image can be told from what is retained; no gate"
            warnings.warn(message, ChipWarning, stacklevel=2)
            return {}
        _say_uncovered(first.name, solved[2], statistics.seen)
        return {first: solved[0], second: solved[1]}

    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: Any, component: Component = Component.TEXT
    ) -> WeightUpdate | None:
        raise NotImplementedError("the maps of a connector are solved for together")


def _next(statistics: Any, last: bool) -> Callable[[], Statistics]:
    """What follows a look; along no direction where the module is the connector's `last`."""
    if isinstance(statistics, NearestStatistics):
        seen, pool = statistics.seen, statistics.pool
        widest = widest_directions(seen.target.inputs[: 0 if last or not len(pool) else None], pool)
        if statistics.looks < NEAREST_LOOKS:
            return lambda: NearestStatistics(seen, widest, statistics)
        return lambda: HighestStatistics(seen, widest)
    target = statistics.target.inputs[: 0 if last or statistics.retained.count == 0 else None]
    towards = separating_directions(target, statistics.mean, statistics.covariance, RIDGE) if len(target) else target
    return lambda: NearestStatistics(statistics, towards)


def _pair(modules: Mapping[TargetModule, MeasuredModule]) -> tuple[TargetModule, TargetModule]:
    """The two maps of a connector that have an activation between them.

    Raises:
        InputError: there are none.
    """
    names = list(modules)
    for first, second in pairwise(names):
        fits = modules[first].weight.shape[0] == modules[second].weight.shape[1]
        if fits and modules[first].activation is not None:
            return first, second
    raise InputError(
        f"{names[0].name}: {NO_PAIR}; use --method shielded",
        argument="method",
        value="gated",
    )


def _say_uncovered(name: str, gates: Gates, seen: GatedStatistics) -> None:
    """Say which tokens of the target no gate opens for."""
    original = seen.target.images < seen.record_weights.originals
    for of, tokens in (("the target's image", original), ("its altered forms", ~original)):
        total, alike = int(tokens.sum()), int((tokens & ~gates.covered & ~gates.separable).sum())
        without_room = int((tokens & ~gates.covered & gates.separable).sum())
        if alike or without_room:
            reasons = f"{alike} are like what is retained, {without_room} would take more --units or --max-change"
            message = f"{name}: {total - alike - without_room} of {total} tokens of {of} meet a gate; {reasons}"
            warnings.warn(message, ChipWarning, stacklevel=2)
