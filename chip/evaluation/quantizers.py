"""Rounding weights as the formats do that models are run in: round to nearest, NF4 of bitsandbytes, Q4_K of GGUF."""

from __future__ import annotations

import functools

import torch
from einops import rearrange
from torch import Tensor, nn

NF4_BLOCK = 64
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Quantiles of the normal distribution, scaled to [−1, 1] (Dettmers et al. 2023, arXiv 2305.14314, appendix E)."""

SUPER_BLOCK, BLOCK = 256, 32
"""Weights that share the scale of their scales in Q4_K, and weights that share a scale and a minimum."""
_Q4_K_STEPS = 21
"""Scales that Q4_K tries for a block, beside the one from its smallest to its largest weight."""


def round_to_nearest(weight: Tensor, bits: int = 4, group: int | None = 32) -> Tensor:
    """Symmetric round-to-nearest with one scale for each `group` of consecutive weights of a row.

    Args:
        weight: (rows, columns), any float dtype; the last group of a row may be shorter.
        group: None: one scale for each row, which is an output channel.

    Returns:
        The weights a `bits`-bit deployment computes with, in the same dtype and shape.
    """
    columns = weight.shape[1]
    group = group or columns
    padded = nn.functional.pad(weight.float(), (0, -columns % group))
    groups = rearrange(padded, "rows (groups group) -> rows groups group", group=group)
    top = 2 ** (bits - 1) - 1
    scale = (groups.abs().amax(-1, keepdim=True) / top).clamp(min=torch.finfo(torch.float32).tiny)
    rounded: Tensor = (groups / scale).round().clamp(-top - 1, top) * scale
    flat: Tensor = rearrange(rounded, "rows groups group -> rows (groups group)")
    return flat[:, :columns].to(weight.dtype)


def nf4(weight: Tensor) -> Tensor:
    """NF4 as bitsandbytes writes and reads it, without double quantization.

    Blocks of 64 weights, counted through the whole matrix row by row, each divided by its largest magnitude; every
    weight goes to the nearest of 16 levels, the lower one of two that are as near.

    Args:
        weight: (rows, columns), any float dtype; the last block may be shorter.

    Returns:
        The weights a deployment computes with, in the same dtype and shape.
    """
    flat = weight.float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % NF4_BLOCK)).view(-1, NF4_BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    scaled = blocks * (1 / largest).nan_to_num(posinf=0)
    nearest = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)
    return (levels[nearest] * largest).flatten()[: len(flat)].view(weight.shape).to(weight.dtype)


def q4_k(weight: Tensor) -> Tensor:
    """Q4_K as llama.cpp writes (`quantize_row_q4_K_ref`, no importance matrix) and reads it.

    A block of 32 weights is d s q − d_min m, q of 4 bits; its scale s and minimum m have 6 bits, and d and d_min of a
    super-block of 256 are fp16. A row that is no multiple of 256 long becomes Q5_0 instead, as llama.cpp has it, and
    one that is no multiple of 32 long fp16.

    Args:
        weight: (rows, columns), any float dtype.

    Returns:
        The weights a deployment computes with, in the same dtype and shape.
    """
    columns = weight.shape[1]
    if columns % BLOCK:
        return weight.half().to(weight.dtype)
    if columns % SUPER_BLOCK:
        return q5_0(weight)
    blocks = weight.float().reshape(-1, SUPER_BLOCK // BLOCK, BLOCK)  # (super-blocks, 8, 32)
    scale, minimum = _q4_k_scales(blocks)
    d, scale = _six_bits(scale)
    d_min, minimum = _six_bits(minimum)
    step, low = (d * scale)[..., None], (d_min * minimum)[..., None]
    levels = torch.where(step > 0, (blocks + low) / step, 0.0).round().clamp(0, 15)
    return (step * levels - low).view(weight.shape).to(weight.dtype)


def q5_0(weight: Tensor) -> Tensor:
    """Q5_0 as llama.cpp writes and reads it: blocks of 32, an fp16 scale, and −16 for the weight of largest magnitude.

    Args:
        weight: (rows, columns), any float dtype; columns a multiple of 32.

    Returns:
        The weights a deployment computes with, in the same dtype and shape.
    """
    blocks = weight.float().reshape(-1, BLOCK)
    scale = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -16
    inverse = (1 / scale).nan_to_num(posinf=0, neginf=0)
    levels = (blocks * inverse + 16.5).trunc().clamp(max=31)
    return ((levels - 16) * scale.half().float()).view(weight.shape).to(weight.dtype)


def _six_bits(values: Tensor) -> tuple[Tensor, Tensor]:
    """The fp16 scale of each super-block's `values` (super-blocks, 8) as (super-blocks, 1), and the values as 0 to 63
    of it."""
    largest = values.amax(1, keepdim=True).clamp(min=0)
    inverse = _over(63, largest).nan_to_num(posinf=0)
    return (largest / largest.new_tensor(63.0)).half().float(), (inverse * values).round().remainder(256).clamp(max=63)


def _q4_k_scales(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of each block of x (..., 32), the latter with its sign turned: those of least weighted error.

    `make_qkx2_quants` of llama.cpp: 21 roundings are tried, and to each the scale and minimum are fitted by least
    squares with weights √(mean x²) + |x|.
    """
    weights = (_sum(x.square()) / BLOCK).sqrt()[..., None] + x.abs()
    minimum, high = x.amin(-1).clamp(max=0), x.amax(-1)
    flat = high == minimum
    scale = _over(15, torch.where(flat, 1.0, high - minimum)).reciprocal()
    best = _error(x, weights, _levels(x, 15, minimum, high), scale, minimum)
    tops = 0.1 * torch.arange(_Q4_K_STEPS) - 1 + 15  # in fp32, as there
    for top in tops.tolist():
        levels = _levels(x, top, minimum, high)  # from the best minimum so far
        fitted_scale, fitted_minimum, found = _fit(x, weights, levels)
        error = _error(x, weights, levels, fitted_scale, fitted_minimum)
        better = found & (error < best)
        scale, minimum = torch.where(better, fitted_scale, scale), torch.where(better, fitted_minimum, minimum)
        best = torch.where(better, error, best)
    return torch.where(flat, 0.0, scale), -minimum


def _levels(x: Tensor, top: float, low: Tensor, high: Tensor) -> Tensor:
    """x as 0 to 15, `low` as 0 and `high` as `top`."""
    span = torch.where(high == low, 1.0, high - low)
    return (_over(top, span)[..., None] * (x - low[..., None])).round().clamp(0, 15)


def _error(x: Tensor, weights: Tensor, levels: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    return _sum(weights * (scale[..., None] * levels + minimum[..., None] - x).square())


def _fit(x: Tensor, weights: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted least squares of x on its levels with a minimum of at most 0, and where there is a solution."""
    total, of_x, of_l = _sum(weights), _sum(weights * x), _sum(weights * levels)
    of_ll, of_lx = _sum(weights * levels * levels), _sum(weights * levels * x)
    determinant = total * of_ll - of_l * of_l
    solvable = determinant > 0
    divisor = torch.where(solvable, determinant, 1.0)
    scale, minimum = (total * of_lx - of_x * of_l) / divisor, (of_ll * of_x - of_l * of_lx) / divisor
    positive = minimum > 0
    alone = of_lx / torch.where(of_ll > 0, of_ll, 1.0)
    return torch.where(positive, alone, scale), minimum.clamp(max=0), solvable


def _sum(values: Tensor) -> Tensor:
    """Over the last dimension, one after the other: in another order other roundings would win by a hair."""
    return functools.reduce(torch.add, values.unbind(-1))


def _over(numerator: float, denominator: Tensor) -> Tensor:
    """Divided once: `numerator / tensor` multiplies by a reciprocal that has been rounded."""
    return torch.full_like(denominator, numerator) / denominator
