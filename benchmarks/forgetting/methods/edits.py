"""Methods that are operators: `chip.methods.apply` takes their statistics and applies them; and ours among them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Self

from torch import Tensor

from benchmarks.forgetting.methods.base import BenchmarkMethod
from chip.checkpoint.layout import Checkpoint
from chip.methods import Chip, Shielded
from chip.methods.apply import compute_updates, default_modules
from chip.methods.base import ForgetRequest, Method
from chip.model.loading import VLM
from chip.model.restoring import restoring


@dataclass(frozen=True)
class Edit(Method, BenchmarkMethod):
    """A method by forward passes and linear algebra, site by site."""

    span: str | None = None
    """Layers of the text model, as `--layers` has them; None: the operator's own share."""

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        target_modules = default_modules(vlm, self, layers=self.span)
        parameters = [
            name for module in target_modules for name in (module.weight_name, module.bias_name) if name is not None
        ]
        with restoring(vlm, parameters):
            patch = compute_updates(vlm, source, self, request, target_modules)
            return {name: tensor.detach().cpu().clone() for name, tensor in patch.tensors.items()}


@dataclass(frozen=True)
class ShieldedEdit(Shielded, Edit):
    """The default of `chip edit`."""

    source: ClassVar[str] = "this project, chip/operators/shielded.py"
    tuned: ClassVar[bool] = False

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(retain_weight=retain_weight) for retain_weight in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)]


@dataclass(frozen=True)
class ChipEdit(Chip, Edit):
    """The published operator; the last of the grid is what its paper says."""

    source: ClassVar[str] = "Wu et al. 2025, arXiv 2512.09867, section 4"

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(top_k=k, span=span) for span, k in product(("all", None), (1.0, 0.3, 0.1))]
