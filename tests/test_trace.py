"""Hooks: what they show, where they end a pass, and that nothing of them stays."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chip.model.forward.trace import (
    Call,
    block_diagonal_attention,
    bypass,
    record_calls,
    replace_input,
    replace_output,
    stop_after,
    trace,
)
from chip.model.target_modules import Component, TargetModule


class Projector(nn.Module):
    """A matrix without a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.matrix)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), Projector(), nn.Linear(3, 3)).requires_grad_(False)


X = torch.arange(6.0).view(2, 3)


def is_clean(model: nn.Module) -> bool:
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


def test_trace_shows_what_goes_in_and_what_comes_out(model: nn.Sequential) -> None:
    inputs: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    with trace(model[1], input=inputs.append, output=lambda x, y: pairs.append((x, y))):
        model(X)
    assert torch.equal(inputs[0], model[0](X))
    assert torch.equal(pairs[0][0], inputs[0])
    assert torch.equal(pairs[0][1], model[1](inputs[0]))
    assert is_clean(model)


@pytest.mark.parametrize("name", ["1", "2.matrix"])
def test_a_target_module_is_traced_within_its_model_also_one_that_is_a_parameter(
    model: nn.Sequential, name: str
) -> None:
    target = TargetModule(
        name, "connector", Component.CONNECTOR, None, bias=False, is_parameter=name.endswith("matrix"), connector=0
    )
    inputs: list[Tensor] = []
    ran: list[Any] = []
    with trace(model[3], input=ran.append), trace(model, target, input=inputs.append, stop=True):
        model(X)
        pytest.fail("the pass goes on")
    assert ran == []
    assert torch.equal(inputs[0], model[: int(name[0])](X))
    assert is_clean(model)


def test_a_pass_ends_where_it_should(model: nn.Sequential) -> None:
    ran: list[int] = []
    with trace(model[1], input=lambda _: ran.append(1)), trace(model[3], input=lambda _: ran.append(3)):
        with trace(model[0], input=lambda _: ran.append(0), stop=True):
            model(X)
        assert ran == [0]
        with stop_after(model[2]):
            model(X)
        assert ran == [0, 1]
        with record_calls([model[0], model[3]], model[3]) as calls:
            model(X)
        assert ran == [0, 1, 1, 3]
    assert torch.equal(calls[1].args[0], model[:3](X))
    assert torch.equal(calls[1].run(), model(X))
    assert is_clean(model)


def test_an_outer_stop_is_not_caught_by_an_inner_one(model: nn.Sequential) -> None:
    after_inner = False
    with stop_after(model[1]):
        with stop_after(model[3]):
            model(X)
        after_inner = True
    assert not after_inner


def test_parts_are_replaced_for_a_while_also_where_one_has_a_forward_of_its_own(model: nn.Sequential) -> None:
    expected, own = model(X), model[1].forward
    model[1].forward = own  # as accelerate leaves it
    with replace_output(model[1], X), bypass(model[2]), replace_input(Call(model[3], (2 * X,), {})):
        assert torch.equal(model[:2](X), X)
        assert torch.equal(model[:3](X), X)
        assert torch.equal(model(X), model[3](2 * X))
    assert vars(model[1])["forward"] is own
    assert torch.equal(model(X), expected)


class Holding(nn.Linear):
    """Keeps what its forward has raised, with its traceback."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.raised: list[BaseException] = []

    def __call__(self, x: Tensor) -> Any:
        try:
            return super().__call__(x)
        except BaseException as error:
            self.raised.append(error)
            raise


@pytest.mark.parametrize("held", [False, True])
def test_a_stopped_pass_leaves_its_tensors_to_nobody(model: nn.Sequential, held: bool) -> None:
    """Not even until the garbage collector runs, or while somebody holds the error."""
    inputs: list[weakref.ref[Tensor]] = []
    holding = Holding()
    if held:
        model[1] = holding
    gc.disable()
    try:
        with trace(model[1], input=lambda x: inputs.append(weakref.ref(x)), stop=True):
            model(X)
        with record_calls([model[2]], model[2]) as calls:
            model(X)
        calls.clear()
        with trace(model[0], output=lambda _, y: inputs.append(weakref.ref(y))), stop_after(model[1]):
            model(X)
        assert [reference() for reference in inputs] == [None, None]
        assert len(holding.raised) == (2 if held else 0)
    finally:
        gc.enable()


def test_nothing_is_left_after_an_error(model: nn.Sequential) -> None:
    def fail(_: Tensor) -> None:
        raise ValueError("in the middle")

    with (
        pytest.raises(ValueError, match="in the middle"),
        bypass(model[0]),
        replace_input(Call(model[1], (X,), {})),
        record_calls([model[3]], model[3]),
        trace(model[2], input=fail),
    ):
        model(X)
    assert is_clean(model)


class Layer(nn.Module):
    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
        return attention_mask


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_the_models_own_mask_is_narrowed_to_blocks(kind: str) -> None:
    layer, allowed = Layer(), torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()[None, None]
    causal = torch.ones(1, 1, 3, 3).tril().bool()
    own = {"none": None, "bool": causal, "added": torch.zeros(1, 1, 3, 3).masked_fill(~causal, -torch.inf)}[kind]
    with block_diagonal_attention([layer], allowed):
        mask = layer(X, attention_mask=own)
    assert torch.equal(mask > -1 if kind == "added" else mask, causal & allowed)
    with block_diagonal_attention([layer], None):
        assert layer(X, attention_mask=own) is own
    assert is_clean(layer)
