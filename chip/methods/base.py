"""What an operator is: it says what to measure at a site, and what the site's weights become."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from chip.data.request import ForgetRequest
from chip.errors import InputError
from chip.model.tokens import Statistics


@dataclass(frozen=True)
class Removed:
    """Directions that an update takes out of a site's outputs. They tell of the forgotten: never stored."""

    rows: Tensor
    """(r,) int64: the output rows S they live on."""
    basis: Tensor
    """Q (r, k), orthonormal columns."""

    def left_in(self, parameter: Tensor) -> float:
        """‖Qᵀ W_S‖ (Frobenius, fp64 on the CPU) of a weight (d_out, d_in) or a bias (d_out,)."""
        return float(torch.linalg.norm(self.basis.cpu().double().T @ self._rows_of(parameter)))

    def rounding(self, parameter: Tensor) -> float:
        """The most that rounding to the dtype of `parameter` can leave: u ‖W_S‖, u the unit roundoff.

        Eightfold, for the rounding of the projection itself.
        """
        return 8 * torch.finfo(parameter.dtype).eps / 2 * float(torch.linalg.norm(self._rows_of(parameter)))

    def _rows_of(self, parameter: Tensor) -> Tensor:
        return parameter.cpu()[self.rows.cpu()].double()


@dataclass(frozen=True)
class Update:
    """What one site's parameters become, before they are rounded to the dtype they are stored in."""

    weight: Tensor
    """(d_out, d_in), fp32 or fp64."""
    bias: Tensor | None
    """(d_out,); None where it stays as it is."""
    removed: Removed | None = None
    """What must be gone from the outputs, so that it can be looked for in the file that was written."""


@dataclass(frozen=True)
class Method(ABC):
    """One way to edit. An instance is its settings.

    Raises:
        InputError: a setting lies outside its range.
    """

    name: ClassVar[str]
    sequential: ClassVar[bool] = False
    """Each site's statistics are taken from the model whose earlier sites are already edited; else from the model as it
    was."""
    inputs_only: ClassVar[bool] = False
    """They are statistics of its inputs alone: sites with the same inputs share them, and one after the other is looked
    at, so that only one site's are in memory."""
    compose_connector: ClassVar[bool] = False
    """In a connector each map is measured behind those before it as they are to be, and is told what came in before.
    Goes with `inputs_only`."""
    target_modules: ClassVar[tuple[str, ...]]
    """Kinds of site it edits by default."""
    layers: ClassVar[tuple[float, float]]
    """Which layers of the text model it edits by default, as a share of the depth."""

    ranges: ClassVar[Mapping[str, tuple[float, float]]]
    """Setting -> the least and the largest value that make sense."""
    words: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Setting -> what may stand there instead of a number."""

    def __post_init__(self) -> None:
        for name, (least, most) in self.ranges.items():
            value, option = getattr(self, name), name.replace("_", "-")
            if isinstance(value, str):
                if value not in self.words.get(name, ()):
                    raise InputError(f"--{option} {value}: give a number{_or(self.words.get(name, ()))}")
            elif not least <= value <= most:
                raise InputError(f"--{option} {value:g}: must lie between {least:g} and {most:g}")

    def at(self, kind: str) -> Self:
        """The operator as it is at sites of this kind."""
        return self

    @abstractmethod
    def groups(self, request: ForgetRequest, device: torch.device) -> Any:
        """What the statistics of all sites need to know of the case: which record counts for what."""

    @abstractmethod
    def statistics(self, groups: Any, d_in: int, d_out: int) -> Statistics:
        """What to collect at a site; `groups` as this operator's own method gives them."""

    @abstractmethod
    def update(self, weight: Tensor, bias: Tensor | None, statistics: Any) -> Update | None:
        """The site's new parameters, from the statistics it asked for; None where it has nothing to change.

        Raises:
            torch.linalg.LinAlgError: a system has no trustworthy solution.
        """


def _or(words: Sequence[str]) -> str:
    return "".join(f" or {word}" for word in words)


def membership(count: int, groups: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(count, groups) fp32, 1 or 0: which of `count` records are in which group."""
    member = torch.zeros(count, len(groups))
    for column, group in enumerate(groups):
        member[list(group), column] = 1
    return member.to(device)
