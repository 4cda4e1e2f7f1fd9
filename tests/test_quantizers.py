"""NF4, Q4_K and Q5_0 round as the programs do that write these formats: bitsandbytes 0.50 and llama.cpp's reference."""

from __future__ import annotations

import pytest
import torch

from chip.evaluation.quantizers import NF4_LEVELS, nf4, q4_k, q5_0

NF4 = "2c5d7ea3c5e8fb4d6e9fb4d7ea3c5e8fa3d6e8fb4d6e93c5e7fa3c5e8fb4d6e9"
"""What bitsandbytes makes of (37 i mod 64 − 20) / 100, as places in `NF4_LEVELS`."""
Q4_K = (
    "03a78e98c535b78d7581de5ff3cac4f05fe1968e99d647eab0bae624b66b425d9a0a9d635c77c647fbc2dc0968fbb0a8b3017226ece6227103b890aae8680bc2"
    "cbe746c77b536d9a0a9d635b77b536dab1bae746d99e8691ef50f3cac3ff4ed0967e88c536d99f98b30283381f1956c6481df6116fd1845b5581e17338203a78"
)
"""What llama.cpp makes of ((37 i² + 11 i) mod 251 − 90) / 1000, with these scales and minima, and their scales."""
Q4_K_SCALES = (62, 57, 59, 63, 62, 59, 57, 62), (62, 51, 59, 59, 62, 55, 62, 63)
Q4_K_D = 0.0002644062042236328, 0.0014410018920898438
Q5_0 = (
    *(12, -14, -11, -8, -6, -3, 0, 3, 6, 8, 11, -15, -12, -9, -6, -3),
    *(-1, 2, 5, 8, 10, -15, -13, -10, -7, -4, -1, 1, 4, 7, 10, -16),
)
"""And of (37 i mod 41 − 17) / 100, with this scale."""
Q5_0_D = -0.014373779296875


def test_nf4_is_that_of_bitsandbytes() -> None:
    block = ((torch.arange(64) * 37) % 64 - 20) / 100
    expected = torch.tensor(NF4_LEVELS)[[int(level, 16) for level in NF4]] * torch.tensor(0.43)
    assert torch.equal(nf4(block[None]), expected[None])
    assert torch.equal(nf4(block.view(2, 32)), expected.view(2, 32))  # blocks go through rows
    two = nf4(torch.cat((block, block[:10]))[None])[0]
    assert torch.equal(two[:64], expected)
    assert two[64:].abs().amax() == block[:10].abs().amax()  # a short block has a scale of its own
    assert torch.equal(nf4(torch.zeros(3, 5)), torch.zeros(3, 5))
    assert nf4(block[None].bfloat16()).dtype == torch.bfloat16


def test_q4_k_is_that_of_llama_cpp() -> None:
    number = torch.arange(256)
    block = ((number * number * 37 + 11 * number) % 251 - 90) / 1000
    scale, minimum = (
        torch.tensor(d, dtype=torch.float32) * torch.tensor(values, dtype=torch.float32)
        for d, values in zip(Q4_K_D, Q4_K_SCALES, strict=True)
    )
    levels = torch.tensor([float(int(level, 16)) for level in Q4_K]).view(8, 32)
    expected = (scale[:, None] * levels - minimum[:, None]).view(1, 256)
    assert torch.equal(q4_k(block[None]), expected)
    assert torch.equal(q4_k(torch.cat((block, block)).view(2, 256)), expected.repeat(2, 1))
    assert torch.equal(q4_k(torch.zeros(1, 256)), torch.zeros(1, 256))


def test_q5_0_is_that_of_llama_cpp_and_stands_in_where_rows_are_short() -> None:
    block = (((torch.arange(32) * 37) % 41 - 17) / 100)[None]
    expected = (torch.tensor(Q5_0) * torch.tensor(Q5_0_D))[None]
    assert torch.equal(q5_0(block), expected)
    assert torch.equal(q4_k(block), expected)
    assert torch.equal(q4_k(block[:, :20]), block[:, :20].half().float())


@pytest.mark.parametrize("quantize", [nf4, q4_k])
def test_what_is_lost_is_as_large_as_four_bits_lose(quantize: object) -> None:
    weight = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    assert callable(quantize)
    error = float((quantize(weight) - weight).norm() / weight.norm())
    assert 0.05 < error < 0.12
