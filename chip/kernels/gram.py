"""Sums of outer products."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on a device that has no fp64 (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def accumulate_gram(total: Tensor, x: Tensor) -> None:
    """total += xᵀx, in place.

    Args:
        total: (d, d), fp64 where the device has it: thousands of batches are summed without losing bits.
        x: (n, d), any float dtype. The product of one batch is taken in fp32, or in fp64 where x has it.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    total += x.T @ x
