"""Methods as `chip` has them, ours among them: `chip.methods.apply` collects their statistics and edits with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Self

from torch import Tensor

from benchmarks.editing import edited
from benchmarks.forgetting.methods.base import BenchmarkMethod
from chip.checkpoint.layout import Checkpoint
from chip.data.request import ForgetRequest
from chip.methods import Chip, Shielded
from chip.methods.base import Method
from chip.methods.settings import settings_of
from chip.model.loading import VLM


@dataclass(frozen=True)
class Edit(Method, BenchmarkMethod):
    """A method by forward passes and linear algebra, module by module."""

    span: str | None = None
    """Layers of the text model, as `--layers` has them; None: the method's own share."""

    @property
    def settings(self) -> dict[str, Any]:
        """Without those that another one decides: what is found by a limit is no other method where none is given."""
        decided = {name for name in settings_of(self) if getattr(self, name) is None}
        return {name: value for name, value in super().settings.items() if name not in decided}

    def apply(self, vlm: VLM, source: Checkpoint, request: ForgetRequest, seed: int) -> dict[str, Tensor]:
        return self.edit(vlm, source, request, None, self.span)

    def edit(
        self, vlm: VLM, source: Checkpoint, request: ForgetRequest, kinds: Sequence[str] | None, span: str | None
    ) -> dict[str, Tensor]:
        """What tensors become when these kinds of module are edited in these layers; None: the method's own."""
        with edited(vlm, source, self, request, kinds, span) as patch:
            return {name: tensor.detach().cpu().clone() for name, tensor in patch.tensors.items()}


@dataclass(frozen=True)
class ShieldedEdit(Shielded, Edit):
    """The default of `chip edit`."""

    source: ClassVar[str] = "this project, chip/methods/shielded.py"
    tuned: ClassVar[bool] = False

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(retain_weight=retain_weight) for retain_weight in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)]


@dataclass(frozen=True)
class ChipEdit(Chip, Edit):
    """The published method; the last of the grid is what its paper says."""

    source: ClassVar[str] = "Wu et al. 2025, arXiv 2512.09867, section 4"

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(top_k=k, span=span) for span, k in product(("all", None), (1.0, 0.3, 0.1))]
