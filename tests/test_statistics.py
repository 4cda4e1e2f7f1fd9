"""Sums over tokens, where rounding could spoil them."""

from __future__ import annotations

import pytest
import torch

from chip.methods.statistics import SecondMoment

CPU = torch.device("cpu")


@pytest.mark.parametrize("length", [1.0, 1e3, 1e5])
def test_a_second_moment_stays_exact_to_ordinary_tokens_beside_attention_sinks(length: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 48, generator=generator)
    x[::50] *= length
    moment = SecondMoment(48, CPU)
    moment.update(x, torch.ones(600))
    exact = x.double().T @ x.double()
    off = torch.linalg.eigvalsh(moment.total.dense() - exact).abs().max()
    assert off < 1e-5 * x[1::50].double().square().sum(1).mean()  # a ridge is about 1e-4 of it
    assert moment.count == 600
