"""Closed-form methods that scale or zero hidden units of the text model's MLPs: columns of `down_proj`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.forgetting.methods.base import BenchmarkMethod, trained_records
from benchmarks.forgetting.methods.edits import Edit
from benchmarks.forgetting.methods.statistics import forget_and_retain, token_weights
from chip.checkpoint.layout import Checkpoint
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.kernels.gram import accumulation_dtype
from chip.methods.base import WeightUpdate
from chip.methods.settings import setting
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.forward.trace import trace
from chip.model.loading import VLM
from chip.model.restoring import restoring
from chip.model.target_modules import Component, TargetModule, layer_range, select_modules
from chip.model.tensor_names import disk_names
from chip.model.tokens import Tokens

_EPSILON = 1e-12


@dataclass(frozen=True)
class Kvw(BenchmarkMethod):
    """Knowledge vector weakening: w_j ← w_j exp(−γ max(0, log k_f,j − log k_r,j)) for each column j of `down_proj`.

    k_j is the mean of |unit j| where a token of an answer is predicted: k_r over the retained, once, on the untouched
    model; k_f over a batch of the forgotten, on the model as weakened so far. So the exponent adds up over batches.

    As in the authors' code, but for batches of 16 in the place of 4, and a larger γ for fewer of them.
    """

    name: ClassVar[str] = "kvw"
    source: ClassVar[str] = "Kim et al. 2026, arXiv 2601.21794, as in the authors' code"
    layers: ClassVar[tuple[float, float]] = (1 / 28, 26 / 28)
    batch: ClassVar[int] = 16

    gamma: float = 0.1
    """γ: higher weakens more in each step."""
    passes: int = 5
    """How often each forgotten record is seen."""

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(gamma=gamma) for gamma in (0.8, 0.6, 0.4, 0.3, 0.2, 0.1)]

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        target_modules = select_modules(vlm.model, ["down"], layer_range(self.layers, len(vlm.layers)))
        names = [module.weight_name for module in target_modules]
        disk = disk_names(source, names)
        records, (forget, retain) = request.hierarchy.records, trained_records(request)
        generator = torch.Generator().manual_seed(seed)
        retained = knowledge(vlm, target_modules, vlm.batches(records, retain).made())
        with restoring(vlm, names):
            for _ in range(self.passes):
                order = [forget[i] for i in torch.randperm(len(forget), generator=generator)]
                for start in range(0, len(order), self.batch):
                    batches = vlm.batches(records, order[start : start + self.batch], BatchSize(self.batch))
                    forgotten = knowledge(vlm, target_modules, batches.made())
                    for name, k_f, k_r in zip(names, forgotten, retained, strict=True):
                        vlm.set_parameter(name, vlm.parameter(name) * weakening(k_f, k_r, self.gamma))
            return {disk[name]: vlm.parameter(name).detach().cpu().clone() for name in names}


def weakening(forget: Tensor, retain: Tensor, gamma: float) -> Tensor:
    """(d,) in (0, 1]: by how much each unit is weakened that is more active on the forgotten than on the retained."""
    excess = (forget + _EPSILON).log() - (retain + _EPSILON).log()
    return torch.exp(-gamma * excess.clamp(min=0))


def knowledge(vlm: VLM, target_modules: Sequence[TargetModule], batches: Iterable[Batch]) -> list[Tensor]:
    """For each module the mean (d_in,) fp32 of |input| where tokens of answers are predicted."""
    totals = [torch.zeros(module.weight(vlm.model).shape[1], device=vlm.device) for module in target_modules]
    count = 0
    for batch in batches:
        predicts = batch.answer.roll(-1, 1)  # the first token is never an answer's

        def add(total: Tensor, x: Tensor, predicts: Tensor = predicts) -> None:
            total += x[predicts].float().abs().sum(0)

        with ExitStack() as hooks:
            for module, total in zip(target_modules, totals, strict=True):
                hooks.enter_context(trace(vlm.model, module, input=partial(add, total)))
            vlm.hidden_states(batch)
        count += int(predicts.sum())
    return [total / max(1, count) for total in totals]


class Activity:
    """How active each input of a module is: sums over the tokens of the forgotten and of the retained, by modality."""

    def __init__(self, of_records: Tensor, width: int, threshold: float) -> None:
        self._of_records, self._threshold = of_records, threshold
        wide = accumulation_dtype(of_records.device)
        self.count = of_records.new_zeros(2, 2, dtype=wide)
        """(modality, group): image, other; forgotten, retained."""
        self.sums = of_records.new_zeros(2, 2, 4, width, dtype=wide)
        """(modality, group, sum, width): of |z|, of whether |z| exceeds the threshold, of z, of z²."""

    def update(self, tokens: Tokens) -> None:
        weights = token_weights(tokens, self._of_records).to(self.sums.dtype)
        z = tokens.inputs.to(self.sums.dtype)
        measures = torch.stack((z.abs(), (z.abs() > self._threshold).to(z.dtype), z, z.square()))  # (4, n, width)
        for modality, of_it in enumerate((tokens.vision, ~tokens.vision)):
            share = weights * of_it[:, None]
            self.count[modality] += share.sum(0)
            self.sums[modality] += torch.einsum("ng,snw->gsw", share, measures)

    def merge(self, distributed: DistributedContext) -> None:
        distributed.all_reduce_(self.count, self.sums)

    @property
    def importance(self) -> Tensor:
        """(modality, group, 4, width): absolute value, frequency, standard deviation, root mean square."""
        absolute, frequency, first, second = (self.sums / self.count.clamp(min=1)[..., None, None]).unbind(2)
        deviation = (second - first.square()).clamp(min=0).sqrt()
        return torch.stack((absolute, frequency, deviation, second.sqrt()), dim=2)


@dataclass(frozen=True)
class Manu(Edit):
    """Zeroes the hidden units with the largest Σ I_k(forget) / (I_k(retain) + ε), over the four measures of importance
    I_k (absolute value, frequency, deviation, root mean square) and the modalities.

    An adaptation: there the modalities are questions with an image and the same without, and units of the vision tower
    are pruned too; here they are image tokens and others of one pass, and the share is taken in each layer by itself.
    A unit is zeroed by its column of `down_proj`, which is the same as zeroing its row of `gate_proj`.
    """

    name: ClassVar[str] = "manu"
    source: ClassVar[str] = "Liu et al. 2025, arXiv 2502.15910, as in the authors' code"
    target_modules: ClassVar[tuple[str, ...]] = ("down",)
    layers: ClassVar[tuple[float, float]] = (0.0, 1.0)

    share: float = setting(0.02, "Of a layer's units that are zeroed.", maximum=1)
    threshold: float = setting(0.1, "A unit beyond it counts as active.")

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(share=share) for share in (0.6, 0.5, 0.4, 0.3, 0.1, 0.02)]

    def record_weights(self, request: ForgetRequest, device: torch.device) -> Tensor:
        return forget_and_retain(request, device)

    def statistics(self, record_weights: Tensor, d_in: int, d_out: int) -> Activity:
        return Activity(record_weights, d_in, self.threshold)

    def statistics_bytes(self, d_in: int, d_out: int) -> int:
        return 0  # a few vectors

    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: Activity, component: Component = Component.TEXT
    ) -> WeightUpdate:
        forget, retain = statistics.importance.unbind(1)  # (modality, 4, d_in)
        score = (forget / (retain + 1e-5)).sum((0, 1))
        wide = weight.to(score.dtype, copy=True)
        wide[:, score.topk(round(self.share * len(score))).indices] = 0
        return WeightUpdate(wide, None)
