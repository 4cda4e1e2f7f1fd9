"""Gram matrices: sums of outer products over many batches."""

from __future__ import annotations

import torch
from torch import Tensor

from chip.kernels.symmetric import SymmetricMatrix


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on a device that has no fp64 (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def accumulate_gram(total: SymmetricMatrix, x: Tensor, weights: Tensor | None = None) -> None:
    """total += xᵀ diag(weights) x, in place.

    Torch lacks a symmetric rank-k update (BLAS: syrk), so the product is taken in strips of rows, each from the
    diagonal on: little more than half of the work, and no second (d, d) matrix.

    Args:
        total: (d, d), `accumulation_dtype`. In fp64 thousands of batches add up without losing bits; in fp32 each sum
            rounds up as often as down, which stays below 1e-5 of the total.
        x: (n, d), any float dtype. The product of one batch is taken in fp32, or in fp64 where x has it.
        weights: (n,), of any dtype, non-negative: how often each row counts. Without them, each counts once.

    Raises:
        RuntimeError: from torch, where shapes or devices do not fit.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    weighted = x if weights is None else x * weights.to(x.dtype)[:, None]
    rows = _strip_rows(x)
    for block, panel in zip(total.blocks, total.panels, strict=True):
        for top in range(0, len(panel), rows):
            first = block.start + top
            last = min(first + rows, block.stop)
            panel[top : top + rows, top:] += weighted[:, first:last].T @ x[:, first:]


def _strip_rows(tensor: Tensor) -> int:
    """Rows at a time: enough for a product's full speed; on a CPU its result stays in the cache until it is added."""
    return 192 if tensor.device.type == "cpu" else 4096
