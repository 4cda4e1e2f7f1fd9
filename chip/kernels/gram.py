"""Sums of outer products."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on a device that has no fp64 (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def accumulate_gram(total: Tensor, x: Tensor, weights: Tensor | None = None) -> None:
    """total += xᵀ diag(weights) x, in place, on and above the diagonal; what stands below it means nothing.

    Torch has no product that knows its result to be symmetric, so it is taken in panels of rows, each from the diagonal
    on: little more than half of the work, and no second (d, d) matrix.

    Args:
        total: (d, d), `accumulation_dtype`, made whole by `symmetrize_`. In fp64 thousands of batches add up without
            losing bits; in fp32 what each sum rounds off is as often up as down, and stays below 1e-5 of the total.
        x: (n, d), any float dtype. The product of one batch is taken in fp32, or in fp64 where x has it.
        weights: (n,), of any dtype, non-negative: how often each row counts; all once without them.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    weighted = x if weights is None else x * weights.to(x.dtype)[:, None]
    panel = _block(x)
    for top in range(0, x.shape[1], panel):
        total[top : top + panel, top:] += weighted[:, top : top + panel].T @ x[:, top:]


def symmetrize_(total: Tensor) -> Tensor:
    """Fill what is below the diagonal of `total` (d, d) from what is above it, in place; returns `total`."""
    block = _block(total)
    for top in range(0, len(total), block):
        end = top + block
        corner = total[top:end, top:end]
        corner.copy_(corner.triu() + corner.triu(1).T)
        total[end:, top:end] = total[top:end, end:].T
    return total


def _block(tensor: Tensor) -> int:
    """Wide enough for a product's full speed; on a CPU its result stays in the cache until it is added."""
    return 192 if tensor.device.type == "cpu" else 4096
