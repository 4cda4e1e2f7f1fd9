"""Closed-form methods that take directions out of a layer's inputs or outputs, by second moments of its inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.forgetting.methods.edits import Edit
from benchmarks.forgetting.methods.statistics import (
    SecondMoments,
    forget_and_retain,
    token_weights,
)
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.kernels.gram import accumulation_dtype
from chip.kernels.solve import solve_spd_
from chip.kernels.subspace import leading_basis, project_out
from chip.kernels.symmetric import SymmetricSum
from chip.methods import Chip
from chip.methods.base import Needs, WeightUpdate
from chip.methods.chip import ChipStatistics, ChipWeights
from chip.methods.settings import setting
from chip.methods.statistics import FirstMoment, SecondMoment
from chip.model.target_modules import KINDS, Component
from chip.model.tokens import Tokens

_TINY = 1e-9
"""Eigenvalues below this share of the largest are rounding."""


@dataclass(frozen=True)
class _OfMoments(Edit):
    """An edit that follows from the second moments of a module's inputs."""

    def record_weights(self, request: ForgetRequest, device: torch.device) -> Tensor:
        return forget_and_retain(request, device)

    def statistics(self, record_weights: Tensor, d_in: int, d_out: int) -> SecondMoments:
        return SecondMoments(record_weights, d_in)

    def statistics_bytes(self, d_in: int, d_out: int) -> int:
        return 2 * SecondMoment.bytes(d_in)


@dataclass(frozen=True)
class Kodge(_OfMoments):
    """Retain and forget space of a layer's inputs: W′ = W (I − M_f (I − M_r))ᵀ, for every linear layer at once.

    M = U Λ Uᵀ with U the singular vectors of the inputs, Λ_i = α s_i / ((α − 1) s_i + 1) and s_i the share of the
    squared singular values. I − M_r takes from the forget space what the retain space shares.

    An adaptation: from images' classes to tokens of a text model and its connector, whose tower stays as it is.
    """

    name: ClassVar[str] = "kodge"
    source: ClassVar[str] = "Kodge, Saha and Roy 2024, arXiv 2312.00761, the projection as in the authors' code"
    target_modules: ClassVar[tuple[str, ...]] = KINDS
    layers: ClassVar[tuple[float, float]] = (0.0, 1.0)

    forget: float = setting(3.0, "α_f: higher takes weak directions of the forgotten too.")
    retain: float = setting(100.0, "α_r: higher protects weak directions of the retained too.")

    @classmethod
    def grid(cls) -> list[Self]:
        pairs = ((300.0, 100.0), (100.0, 100.0), (1e3, 300.0), (300.0, 300.0), (100.0, 300.0), (300.0, 1e3))
        return [cls(forget=forget, retain=retain) for forget, retain in pairs]

    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: SecondMoments, component: Component = Component.TEXT
    ) -> WeightUpdate | None:
        forget = _importance(statistics.forget, self.forget)
        wide = weight.to(forget.dtype)
        unshared = wide - wide @ _importance(statistics.retain, self.retain)  # W (I − M_r)
        return WeightUpdate(wide - unshared @ forget, None)


def _importance(moment: Tensor, alpha: float) -> Tensor:
    """M (d, d): the space that x spans, each direction by its importance in [0, 1]."""
    values, vectors = torch.linalg.eigh(moment)
    values = torch.where(values > _TINY * values[-1], values, 0)
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    scaled = alpha * share / ((alpha - 1) * share + 1)
    importance: Tensor = (vectors * scaled) @ vectors.T
    return importance


@dataclass(frozen=True)
class Contrastive(_OfMoments):
    """W′ = W (I − V Vᵀ), V the leading eigenvectors of C_f − β C_r: what the target's inputs show and others' do not.

    An adaptation: the directions are those of contrastive principal components, on second moments in the place of
    covariances; that paper shows data with them and does not edit. Modules and order are the default method's, so that
    the two differ in what they do with the same moments.
    """

    name: ClassVar[str] = "contrastive"
    source: ClassVar[str] = "Abid et al. 2018, contrastive PCA, arXiv 1709.06716"
    needs: ClassVar[Needs] = Needs(outputs=False, model="sequential")
    target_modules: ClassVar[tuple[str, ...]] = ("connector", "down")
    layers: ClassVar[tuple[float, float]] = (0.0, 0.75)

    contrast: float = setting(2.0, "β: higher takes only what the retained hardly show.")
    rank: int = setting(16, "Most directions that a module loses.", minimum=1)

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(contrast=contrast) for contrast in (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)]

    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: SecondMoments, component: Component = Component.TEXT
    ) -> WeightUpdate | None:
        values, vectors = torch.linalg.eigh(statistics.forget - self.contrast * statistics.retain)
        leading = vectors[:, values > _TINY * values.abs().max()][:, -self.rank :]  # (d_in, r)
        if leading.shape[1] == 0:
            return None
        return WeightUpdate(project_out(weight.to(leading.dtype).T, leading).T, None)


class ObliqueStatistics:
    """What the published method collects, and the moments of the retained; all of inputs, since outputs are linear in
    them."""

    def __init__(self, record_weights: ChipWeights, d_in: int, alpha: float) -> None:
        device = record_weights.magnitude.device
        self._retained = record_weights.magnitude[:, 1]
        self._chip = ChipStatistics(record_weights, d_in, alpha)
        self._first, self._second = FirstMoment(1, d_in, device), SecondMoment(d_in, device)

    def update(self, tokens: Tokens) -> None:
        self._chip.update(replace(tokens, outputs=tokens.inputs))
        weight = token_weights(tokens, self._retained)
        self._first.update(tokens.inputs, weight[:, None])
        self._second.update(tokens.inputs[weight > 0], weight[weight > 0])

    def merge(self, distributed: DistributedContext) -> None:
        for moment in (self._chip, self._first, self._second):
            moment.merge(distributed)

    def directions(self, weight: Tensor) -> Tensor:
        """(m, d_out): normalized differences between children of the target and their siblings, behind W."""
        differences = (self._chip.child.mean - self._chip.around.mean) @ weight.T
        return torch.nn.functional.normalize(differences, dim=1, eps=torch.finfo(weight.dtype).tiny)

    def retained(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """C_r (d_out, d_out): E[y yᵀ] of y = W x + b over the tokens of the retained."""
        moment = weight @ self._second.mean.dense() @ weight.T
        if bias is not None:
            cross = torch.outer(weight @ self._first.mean[0], bias)
            moment += cross + cross.T + torch.outer(bias, bias)
        return moment


@dataclass(frozen=True)
class Oblique(Edit):
    """W′ = P W and b′ = P b with P = I − Q (Qᵀ C_r⁻¹ Q)⁻¹ Qᵀ C_r⁻¹, C_r the second moment of the retained outputs.

    Of all P with P Q = 0 it moves the retained outputs least: with M = I − P it minimizes tr(M C_r Mᵀ) for M Q = Q, and
    the Lagrangian gives M C_r = Λ Qᵀ. Q is the published method's, on all rows: the leading right singular vectors of
    the target's sibling-differential directions.

    An adaptation: LEACE erases a concept from representations and takes the moments of all data; here the concept is
    the target, the moments are those of what is retained, and P goes into the weights.
    """

    name: ClassVar[str] = "oblique"
    source: ClassVar[str] = "Belrose et al. 2023, LEACE, arXiv 2306.03819, with the directions of arXiv 2512.09867"
    needs: ClassVar[Needs] = Needs(outputs=False, model="sequential")
    target_modules: ClassVar[tuple[str, ...]] = ("connector", "down")
    layers: ClassVar[tuple[float, float]] = (0.0, 1.0)

    energy: float = setting(1.0, "τ: the share of the directions' squared singular values that is nulled.", maximum=1)
    ridge: float = setting(
        1e-3, "Added to C_r, as a share of its mean diagonal; without end it makes P orthogonal.", minimum=1e-9
    )
    alpha: float = setting(0.3, "The weight of image tokens in a record's activation.", maximum=1)

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(ridge=ridge) for ridge in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)]

    def record_weights(self, request: ForgetRequest, device: torch.device) -> ChipWeights:
        return Chip().record_weights(request, device)

    def statistics(self, record_weights: ChipWeights, d_in: int, d_out: int) -> ObliqueStatistics:
        return ObliqueStatistics(record_weights, d_in, self.alpha)

    def statistics_bytes(self, d_in: int, d_out: int) -> int:
        return SecondMoment.bytes(d_in)

    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: ObliqueStatistics, component: Component = Component.TEXT
    ) -> WeightUpdate | None:
        wide = accumulation_dtype(weight.device)
        weight, bias = weight.to(wide), None if bias is None else bias.to(wide)
        basis = leading_basis(statistics.directions(weight), self.energy)
        if basis.shape[1] == 0:
            return None
        moment = statistics.retained(weight, bias)
        system = SymmetricSum.of(moment, self.ridge * float(moment.diagonal().mean()))
        coefficients = solve_spd_(basis.T.clone(), system)  # Qᵀ C_r⁻¹, (k, d_out)
        coefficients = torch.linalg.solve(coefficients @ basis, coefficients)
        return WeightUpdate(
            weight - basis @ (coefficients @ weight),
            None if bias is None else bias - basis @ (coefficients @ bias),
        )
