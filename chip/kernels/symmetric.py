"""Symmetric matrices of which half is held: what a sum of outer products needs at the width of a large model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


class SymmetricMatrix:
    """A symmetric (d, d) matrix, of which little more than d² / 2 values are held: what is on and above the diagonal.

    They lie in panels: some rows each, from the first of the rows' own columns on. What stands below the diagonal
    within a panel means nothing.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """Zero, (width, width)."""
        self.width, self.dtype, self.device = width, dtype, device
        rows = panel_rows(device)
        self.blocks = [slice(start, min(start + rows, width)) for start in range(0, width, rows)]
        """The rows of each panel, which are the first columns of it too."""
        self.panels = [torch.zeros(b.stop - b.start, width - b.start, dtype=dtype, device=device) for b in self.blocks]

    @classmethod
    def of(cls, matrix: Tensor) -> SymmetricMatrix:
        """From what stands on and above the diagonal of `matrix` (d, d)."""
        result = cls(len(matrix), matrix.dtype, matrix.device)
        for block, panel in zip(result.blocks, result.panels, strict=True):
            panel.copy_(matrix[block, block.start :])
        return result

    @staticmethod
    def bytes(width: int, dtype: torch.dtype = torch.float64) -> int:
        """Bytes that it takes where panels are small beside it, at most."""
        return dtype.itemsize * width * (width + panel_rows(torch.device("cpu"))) // 2

    def above(self, number: int) -> Tensor:
        """(start, b): the columns of block `number` in the rows before it; a copy."""
        block, panels = self.blocks[number], zip(self.blocks[:number], self.panels[:number], strict=True)
        rows = [panel[:, block.start - before.start : block.stop - before.start] for before, panel in panels]
        return torch.cat(rows) if rows else self.panels[number].new_empty(0, block.stop - block.start)

    def columns(self, number: int) -> Tensor:
        """(d, b): the whole columns of block `number`; a copy."""
        panel = self.panels[number]
        corner = panel[:, : len(panel)]
        return torch.cat((self.above(number), corner.triu() + corner.triu(1).T, panel[:, len(panel) :].T))

    def dense(self) -> Tensor:
        """(d, d), whole; a copy."""
        return SymmetricSum(((1.0, self),)).dense()


def panel_rows(device: torch.device) -> int:
    """Rows of a panel: enough for products and factorizations at full speed."""
    return 512 if device.type == "cpu" else 4096


@dataclass(frozen=True)
class SymmetricSum:
    """Σ scale · matrix + ridge · I, (d, d), which never stands in memory: parts of it are made when they are needed."""

    terms: tuple[tuple[float, SymmetricMatrix], ...]
    """At least one; all of one width, dtype and device."""
    ridge: float = 0.0

    @classmethod
    def of(cls, matrix: Tensor, ridge: float = 0.0) -> SymmetricSum:
        """From what stands on and above the diagonal of `matrix` (d, d); and `ridge` · I."""
        return cls(((1.0, SymmetricMatrix.of(matrix)),), ridge)

    def plus(self, other: SymmetricSum, scale: float) -> SymmetricSum:
        """This one, and `scale` times the other."""
        terms = (*self.terms, *((scale * factor, matrix) for factor, matrix in other.terms))
        return SymmetricSum(terms, self.ridge + scale * other.ridge)

    @property
    def like(self) -> SymmetricMatrix:
        """One of the matrices: for the width, the dtype, the device and the blocks, which all share."""
        return self.terms[0][1]

    def panel(self, number: int) -> Tensor:
        """(b, d − start): panel `number`; a copy."""
        (scale, first), *rest = self.terms
        result = first.panels[number] * scale
        for scale, matrix in rest:
            result.add_(matrix.panels[number], alpha=scale)
        result.diagonal().add_(self.ridge)
        return result

    def columns(self, number: int) -> Tensor:
        """(d, b): the whole columns of block `number`; a copy."""
        (scale, first), *rest = self.terms
        result = first.columns(number).mul_(scale)
        for scale, matrix in rest:
            result.add_(matrix.columns(number), alpha=scale)
        result[self.like.blocks[number]].diagonal().add_(self.ridge)
        return result

    def _products(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Some columns of x A after the other."""
        for number, block in enumerate(self.like.blocks):
            yield block, x @ self.columns(number)

    def product(self, x: Tensor) -> Tensor:
        """x A: (m, d), for x (m, d) in the dtype of A."""
        result = torch.empty_like(x)
        for block, values in self._products(x):
            result[:, block] = values
        return result

    def quadratic(self, x: Tensor) -> float:
        """tr(x A xᵀ), for x (m, d) in the dtype of A."""
        return float(sum((values * x[:, block]).sum() for block, values in self._products(x)))

    def mean_diagonal(self) -> float:
        """tr(A) / d."""
        like = self.like
        traces = [scale * sum(panel.diagonal().sum() for panel in matrix.panels) for scale, matrix in self.terms]
        return float(sum(traces)) / like.width + self.ridge

    def dense(self) -> Tensor:
        """(d, d), whole."""
        return torch.cat([self.columns(number) for number in range(len(self.like.blocks))], 1)
