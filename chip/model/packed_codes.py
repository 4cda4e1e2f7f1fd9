"""Weights of GPTQ and AWQ as numbers: codes of a few bits, packed into words of 32, with a scale and a zero a group.

transformers computes with these in kernels of GPUs alone, and no library unpacks GPTQ on a CPU without bringing a torch
of its own. The layouts are those of AutoGPTQ's and AutoAWQ's own packing.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 32
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where the codes of a word stand in it, in AutoAWQ's `gemm` layout."""


def gptq_weight(
    codes: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor | None, bits: int, shift: int = 1
) -> Tensor:
    """The weight (d_out, d_in) in fp32: W[o, i] = s[g(i), o] (q[i, o] − z[g(i), o] − shift).

    Args:
        codes: (d_in × bits / 32, d_out) int32, packed along d_in.
        zeros: (groups, d_out × bits / 32) int32, packed along d_out.
        scales: (groups, d_out).
        groups: (d_in,) g: the group of each input; None: they follow each other, all of one size.
        bits: of a code; where `groups` is there, its length says it, as modules may differ.
        shift: by which stored zeros are too low: 1, but in the format `gptq_v2`.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    d_in = len(codes) * _WORD // bits if groups is None else len(groups)
    bits = len(codes) * _WORD // d_in
    unpacked = _unpack(codes.T, bits)[:, :d_in]
    zero = _unpack(zeros, bits)[:, : scales.shape[1]] + shift
    return _weight(unpacked, zero, scales, groups)


def awq_weight(codes: Tensor, zeros: Tensor | None, scales: Tensor) -> Tensor:
    """The weight (d_out, d_in) in fp32: W[o, i] = s[g, o] (q[i, o] − z[g, o]), with g = ⌊i G / d_in⌋.

    Args:
        codes: (d_in, d_out / 8) int32: of 4 bits, packed along d_out.
        zeros: (G, d_out / 8) int32, likewise; None: all are 8.
        scales: (G, d_out).

    Raises:
        ValueError: the shapes do not fit each other.
    """
    order = torch.tensor(_AWQ_ORDER)

    def unpack(packed: Tensor) -> Tensor:
        return _unpack(packed, 4).view(len(packed), -1, len(order))[..., order].flatten(1)

    zero = torch.full_like(scales, 8, dtype=torch.int32) if zeros is None else unpack(zeros)
    return _weight(unpack(codes).T, zero, scales, None)


def _weight(codes: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor | None) -> Tensor:
    """`codes`: (d_out, d_in); `zeros` and `scales`: (groups, d_out)."""
    if groups is None:
        if codes.shape[1] % len(scales):
            raise ValueError(f"{codes.shape[1]} inputs in {len(scales)} groups")
        groups = torch.arange(len(scales)).repeat_interleave(codes.shape[1] // len(scales))
    group = groups.long()
    return scales.float().T[:, group] * (codes - zeros.T[:, group])


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """(rows, words) int32 -> (rows, words × 32 / bits) int32: code k of a row is its bits from k × bits on, the lowest
    first; one may begin in a word and end in the next."""
    if packed.dtype != torch.int32 or packed.shape[1] * _WORD % bits:
        raise ValueError(f"{packed.shape[1]} words of {packed.dtype} for codes of {bits} bits")
    octets, places = packed.contiguous().view(torch.uint8), torch.arange(8, dtype=torch.uint8)
    single = (octets.unsqueeze(2) >> places).bitwise_and_(1).reshape(len(packed), -1, bits)
    return (single << places[:bits]).sum(2, dtype=torch.int32)
