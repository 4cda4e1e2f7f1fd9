"""The default method: what the target brings is sent where everyone's goes; what is retained stays where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from chip.data.request import ForgetRequest
from chip.errors import InputError
from chip.kernels.gram import accumulate_gram
from chip.kernels.solve import solve_spd_
from chip.kernels.symmetric import SymmetricMatrix, SymmetricSum
from chip.kernels.trust_region import solve_in_trust_region
from chip.methods.base import MeasuredModule, Method, Needs, Search, WeightUpdate
from chip.methods.settings import setting
from chip.methods.shielded_statistics import ShieldedStatistics, ShieldedWeights
from chip.methods.statistics import SecondMoment
from chip.model.target_modules import Component, TargetModule

AUTO: Literal["auto"] = "auto"

GRID = (
    *(1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 768.0, 1024.0),
    *(1536.0, 2048.0, 3072.0),
)
"""Retain weights that a search tries, from the strongest forgetting to the weakest; by halves, so five at most."""
MAX_RETAIN_DROP = 0.02
MAX_GENERAL_CHANGE = 0.02
MAX_GENERAL_KL = 0.01

CONNECTOR_RETAIN_SCALE = 1 / 4
"""The connector's part of β: all that an image shows comes through it, and what its first map takes from those who stay
the second gives back, so that it can remove more, at a smaller cost, than the layers behind it."""
_ROWS = 256  # of a weight, that are widened at once

GUARD_WEIGHT = 1.0
"""What each earlier target counts beside C_r where it is guarded: as much as all that is retained."""

OVERSHOOT = 1 / 2
"""How far past the mean a target token is sent, as a part of its way there: in directions that the retained use too the
shield lets it go only part of the way, and this makes up for it in the others."""


@dataclass(frozen=True)
class Shielded(Method):
    """Ridge regression of the target's outputs onto everyone's, shielded by what is retained:

        min over W'   √m E_f ‖W'x − W t(x)‖²  +  β E_r ‖W'x − Wx‖²  +  λ ‖W' − W‖²
        W' = W − √m W B K⁻¹,   B = E_f[(x − t(x)) xᵀ],   K = √m E_f[x xᵀ] + β C_r + λ I,
        t(x) = μ(x) − ½ (x − μ(x)),   C_r = γ C_siblings + γ C_matched + (1 − 2γ) C_retained

    μ(x) is the mean of the retained tokens that stand where x stands; x − μ is the differential direction of CHIP (Wu
    et al., arXiv 2512.09867, section 4), on the input side, and against all that is retained: the mean of a few
    siblings is an input like theirs, which a model takes for the nearest one it knows, often the target itself. The
    target goes past μ(x), by half the way to it (`OVERSHOOT`).

    What is to go is where two things meet: this target, and that about it. So both neighbors have a share of their own
    beside that of all that are retained, however few they are: the siblings, of whom the same is not asked or said, and
    the matched records of others, of whom it is.

    m is the number of the targets' images (a section has a part of one): each has only 1/m of E_f, so that without a
    weight an institution would be forgotten far less than a study, and a section more than its share. With m itself as
    the weight siblings would pay.

    Every layer is measured in the model as it was, and is to remove the target by itself: what a changed image, a
    rounding or more training brings past one module, the next one still takes.

    What no record holds, a pretrained model's other knowledge, general text protects: with C_g its second moment, K
    gains β_g C_g, and β_g is the multiplier of a trust region in function space, E_g ‖ΔW x‖² ≤ ε² E_g ‖W x‖²: zero
    where the bound holds anyway, and found for each layer by itself.

    A connector is one function of an image, through which all must pass. Each of its maps is measured behind those
    before it as they will be, and is to give what it gave: with x₀ what came in before, μ is of x₀, and E_r ‖W'x −
    Wx₀‖² in the place of E_r ‖W'x − Wx‖² adds β E_r[(x − x₀) xᵀ] to √m B. So it takes on what the one before it has
    left of the target, and gives back what that has taken from the others.

    Where earlier targets are guarded, K gains β Σ E_j[x xᵀ] over them, each as its own edit measured it, and of low
    rank: what an input of theirs gives is to be what it gives now.
    """

    name: ClassVar[str] = "shielded"
    version: ClassVar[int] = 4
    needs: ClassVar[Needs] = Needs(outputs=False, general=True, guard=True, connector="composed")
    target_modules: ClassVar[tuple[str, ...]] = ("connector", "down")
    layers: ClassVar[tuple[float, float]] = (0.0, 1.0)

    retain_weight: float | Literal["auto"] = setting(
        AUTO, "β: higher keeps more and forgets less; auto: found by a few trials.", maximum=1e9, words=(AUTO,)
    )
    ridge: float = setting(
        0.1,
        "λ: share of C_r's mean diagonal, sinks apart; higher makes smaller changes, which survive quantization.",
        minimum=1e-9,
    )
    neighbor_weight: float = setting(
        0.3, "γ: the siblings' own share of what is retained, and as much for matched records.", maximum=0.5
    )
    max_retain_drop: float | None = setting(
        None,
        f"For auto: what siblings and others may lose each, of probability and of exact answers; {MAX_RETAIN_DROP:g}.",
        maximum=1,
    )

    max_general_change: float | None = setting(
        None,
        "ε, with general data to keep: how far an edit may move a layer's output on it, root mean square, as a share "
        f"of that output; {MAX_GENERAL_CHANGE:g}, and with auto less, where the model itself moves too far.",
        minimum=1e-6,
        maximum=1,
    )
    max_general_kl: float | None = setting(
        None, f"For auto: KL to the unedited model on general data, nats a token; {MAX_GENERAL_KL:g}."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_retain_drop", "max_general_kl"):
            if getattr(self, name) is not None and self.retain_weight != AUTO:
                hint = "limits the search for a retain weight, and one was given; drop one of the two"
                raise InputError(hint, argument=name, value=getattr(self, name))

    @property
    def search(self) -> Search | None:
        if self.retain_weight != AUTO:
            return None
        drop = MAX_RETAIN_DROP if self.max_retain_drop is None else self.max_retain_drop
        divergence = MAX_GENERAL_KL if self.max_general_kl is None else self.max_general_kl
        return Search("retain_weight", GRID, drop, divergence)

    def resolve_search(self, value: float) -> Self:
        return replace(self, retain_weight=value, max_retain_drop=None, max_general_kl=None)

    def tighten(self, factor: float) -> Self:
        return replace(self, max_general_change=factor * self._general_change)

    @property
    def _general_change(self) -> float:
        return MAX_GENERAL_CHANGE if self.max_general_change is None else self.max_general_change

    def record_weights(self, request: ForgetRequest, device: torch.device) -> ShieldedWeights:
        return ShieldedWeights.of(request, self.neighbor_weight, device)

    def statistics(self, record_weights: ShieldedWeights, d_in: int, d_out: int) -> ShieldedStatistics:
        return ShieldedStatistics(record_weights, d_in)

    def statistics_bytes(self, d_in: int, d_out: int) -> int:
        return 3 * SecondMoment.bytes(d_in)  # the third where there is text to keep

    def taken(self, statistics: ShieldedStatistics) -> SymmetricSum:
        return statistics.forget.mean

    def solve_stage(self, modules: Mapping[TargetModule, MeasuredModule]) -> Mapping[TargetModule, WeightUpdate]:
        updates = {
            module: self._update(measured.weight, measured.statistics, module.component, measured.guarded)
            for module, measured in modules.items()
        }
        return {module: update for module, update in updates.items() if update is not None}

    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: ShieldedStatistics, component: Component = Component.TEXT
    ) -> WeightUpdate | None:
        return self._update(weight, statistics, component)

    def _update(
        self, weight: Tensor, statistics: ShieldedStatistics, component: Component, guarded: Tensor | None = None
    ) -> WeightUpdate | None:
        """`solve`; `guarded` as `MeasuredModule` has it."""
        forget, shield = statistics.forget, statistics.shield
        if forget.count == 0 or shield.count == 0:
            return None  # nothing to take out, or nowhere to send it
        moved = self._moved(weight.to(forget.total.dtype), statistics, component)
        system = self._system(statistics, component, guarded)
        solution, general_weight = self._solution(moved, system, weight, statistics.general)
        if statistics.general is not None and general_weight:
            system = system.plus(statistics.general.mean, general_weight)
        for new, old in zip(torch.split(solution, _ROWS), torch.split(weight, _ROWS), strict=True):
            torch.sub(old.to(new.dtype), new, out=new)
        return WeightUpdate(solution, None, metric=system)

    def _moved(self, wide: Tensor, statistics: ShieldedStatistics, component: Component) -> Tensor:
        """√m W B, (d_out, d_in): W E_f[(x − μ(x)) xᵀ] without a third large matrix."""
        forget_scale, shield_scale = self._scales(statistics, component)
        moved = SymmetricSum(((1.0, statistics.forget.total),)).product(wide)
        moved -= (
            wide @ statistics.retained_means.mean_at(statistics.forget_means.keys).T
        ) @ statistics.forget_means.total
        moved *= (1 + OVERSHOOT) * forget_scale
        if statistics.drifts is not None:
            of_forget, of_shield = statistics.drifts
            moved -= OVERSHOOT * forget_scale * (wide @ of_forget.total)
            moved += shield_scale * (wide @ of_shield.total)
        return moved

    def _scales(self, statistics: ShieldedStatistics, component: Component) -> tuple[float, float]:
        """What the sums over the target's tokens and over the retained ones count with."""
        if isinstance(self.retain_weight, str):
            raise ValueError("the retain weight is still to be found")
        scale = CONNECTOR_RETAIN_SCALE if component is Component.CONNECTOR else 1.0
        shield_scale = float(self.retain_weight) * scale / float(statistics.shield.count)
        return sqrt(statistics.target_images) / float(statistics.forget.count), shield_scale

    def _system(
        self, statistics: ShieldedStatistics, component: Component, guarded: Tensor | None = None
    ) -> SymmetricSum:
        """K (d_in, d_in): half the second derivative of what is minimized."""
        forget_scale, shield_scale = self._scales(statistics, component)
        forget, shield = statistics.forget.total, statistics.shield.total
        ridge = self.ridge * float(statistics.ordinary.mean[0, 0]) / shield.width
        system = SymmetricSum(((forget_scale, forget), (shield_scale, shield)), ridge)
        if guarded is None:
            return system
        earlier = SymmetricMatrix(shield.width, shield.dtype, shield.device)
        accumulate_gram(earlier, guarded.to(shield.device, shield.dtype))
        return system.plus(
            SymmetricSum(((1.0, earlier),)), GUARD_WEIGHT * shield_scale * float(statistics.shield.count)
        )

    def _solution(
        self, moved: Tensor, system: SymmetricSum, weight: Tensor, general: SecondMoment | None
    ) -> tuple[Tensor, float]:
        """√m W B (K + β_g C_g)⁻¹ with the least β_g that keeps general text in the trust region; and that β_g."""
        if general is None or general.count == 0:
            return solve_spd_(moved, system), 0.0
        size = general.mean.quadratic(weight.to(moved.dtype))  # E_g ‖W x‖²
        return solve_in_trust_region(moved, system, general.mean, self._general_change**2 * size)
