"""What earlier edits of a sequence took out, so that a later one leaves it where they brought it.

An edit changes what a module makes of every input that shares directions with its target, and an earlier target's may.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from chip.errors import InputError
from chip.kernels.low_rank import leading_factor
from chip.kernels.symmetric import SymmetricSum
from chip.methods.base import Method
from chip.model.target_modules import TargetModule

RANK = 64
"""Directions of a module that are guarded, at most, however many edits they are of."""


@dataclass(frozen=True)
class Guard:
    """By module, the leading directions of inputs in which earlier targets stood out. It tells of the forgotten: it is
    personal data, and nothing of it belongs in a model's folder."""

    factors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """Module -> F (r, d_in), fp32 on the CPU, r up to `RANK`: Fᵀ F is near the sum of what `Method.taken` said."""

    def at(self, module: TargetModule) -> Tensor | None:
        return self.factors.get(module.name)

    def grown(self, module: TargetModule, taken: SymmetricSum, metric: SymmetricSum) -> Tensor:
        """The module's factor behind one edit more.

        Args:
            taken: A (d_in, d_in), as `Method.taken` of that edit.
            metric: K (d_in, d_in), as `WeightUpdate.metric` of it: what lies where K is large is held anyway.

        Raises:
            torch.linalg.LinAlgError: the directions cannot be told.
        """
        before = self.at(module)
        earlier = metric.like.panels[0].new_zeros(0, metric.like.width) if before is None else before
        earlier = earlier.to(metric.like.panels[0])
        return leading_factor(lambda x: taken.product(x) + (x @ earlier.T) @ earlier, RANK, metric).float().cpu()


def check_guarded(method: Method) -> None:
    """Raise `InputError` where the method cannot leave as it is what earlier edits took out."""
    if not method.needs.guard:
        raise InputError(f"method {method.name} has no use for a guard; drop it", argument="guard")
