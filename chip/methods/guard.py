"""What earlier edits of a sequence took out, so that a later one leaves it where they brought it.

An edit changes what a module makes of every input that shares directions with its target, and an earlier target's may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from chip.errors import InputError
from chip.kernels.low_rank import leading_factor
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

    def grown(self, module: TargetModule, product: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """The module's factor behind one edit more.

        Args:
            product: x (n, d_in) -> x A, as `Method.taken` of that edit.
            like: (d_in,), in the dtype and on the device of A.

        Raises:
            torch.linalg.LinAlgError: the directions cannot be told.
        """
        before = self.at(module)
        if before is None:
            return leading_factor(product, like, RANK).float().cpu()
        earlier = before.to(like)
        return leading_factor(lambda x: product(x) + (x @ earlier.T) @ earlier, like, RANK).float().cpu()


def check_guarded(method: Method) -> None:
    """Raise `InputError` where the method cannot leave as it is what earlier edits took out."""
    if not method.needs.guard:
        raise InputError(f"method {method.name} has no use for a guard; drop it", argument="guard")
