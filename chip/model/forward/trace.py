"""Hooks into a model while it runs: seeing, ending early, and standing in for parts; all are removed afterwards."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from chip.model.families import SHARED_STATES
from chip.model.target_modules import TargetModule


class StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass; whoever raises it catches it.

    Raised anew each time, and emptied where it is caught: one that is held would hold, by its traceback, all that the
    pass had in memory.
    """

    def __init__(self, sender: object) -> None:
        super().__init__()
        self.sender = sender


class Call:
    """The arguments that a module is called with."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module, self.args, self.kwargs = module, args, kwargs

    def run(self, **more: Any) -> Any:
        """Call the module again. `more`: keyword arguments beside those of the call."""
        return self.module(*self.args, **self.kwargs, **more)

    def map(self, change: Callable[[Any], Any]) -> Call:
        """The same call with every leaf of its arguments changed."""
        args, kwargs = tree_map(change, (self.args, self.kwargs))
        return Call(self.module, args, kwargs)


@contextmanager
def trace(
    module: nn.Module,
    target: TargetModule | None = None,
    *,
    input: Callable[[Tensor], None] | None = None,
    output: Callable[[Tensor, Any], None] | None = None,
    stop: bool = False,
) -> Iterator[None]:
    """Observe a module within the block, after `Trace` in ROME's `nethook`.

    Args:
        module: the module itself, or the model that `target` lies in.
        input: called with the module's first argument before it computes; for a parameter that is multiplied without
            a module, when it has been.
        output: called with the module's first argument and what it returns.
        stop: whether the block ends as soon as that has been called: before the module computes where only `input` is
            given, else when it has returned.
    """
    observer = _Observer(input, output, stop)
    if target is not None and target.is_parameter:
        with _stopped_by(observer), _ProductTrace(module, target.name, observer):
            yield
        return
    inner = module if target is None else module.get_submodule(target.name)
    handles = []
    if input is not None:
        handles.append(inner.register_forward_pre_hook(lambda _, args: observer.before(args[0])))
    if output is not None or (stop and input is None):
        handles.append(inner.register_forward_hook(lambda _, args, y: observer.after(args[0] if args else None, y)))
    with _stopped_by(observer), _removing(handles):
        yield


class _Observer:
    """Passes on what a module shows, and stops the pass when that was all."""

    def __init__(
        self, input: Callable[[Tensor], None] | None, output: Callable[[Tensor, Any], None] | None, stop: bool
    ) -> None:
        self._input, self._output, self._stop = input, output, stop

    def before(self, x: Tensor) -> None:
        if self._input is not None:
            self._input(x)
            if self._stop and self._output is None:
                raise StopForward(self)

    def after(self, x: Any, y: Any) -> None:
        if self._output is not None:
            self._output(x, y)
        if self._stop:
            raise StopForward(self)


@contextmanager
def stop_after(module: nn.Module) -> Iterator[None]:
    """The block ends when the module has returned."""
    with trace(module, stop=True):
        yield


class _ProductTrace(TorchFunctionMode):
    """Shows each product x @ matrix. The parameter is looked up each time: an offloaded one is another at each run."""

    _products = (torch.matmul, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.mm)

    def __init__(self, model: nn.Module, name: str, observer: _Observer) -> None:
        super().__init__()
        self._model, self._name, self._observer = model, name, observer

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in self._products and args[1:2] and args[1] is self._model.get_parameter(self._name):
            self._observer.before(args[0])
            self._observer.after(args[0], output)
        return output


@contextmanager
def record_calls(modules: Sequence[nn.Module], until: nn.Module | None = None) -> Iterator[list[Call]]:
    """The list gets what each of `modules` is called with, as often as it is; the block ends before `until`, which may
    be among them, would compute. None: when it ends by itself."""
    calls: list[Call] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module in modules:
            calls.append(Call(module, args, kwargs))
        if module is until:
            raise StopForward(calls)

    watched = dict.fromkeys(modules if until is None else (*modules, until))
    with (
        _stopped_by(calls),
        _removing([module.register_forward_pre_hook(record, with_kwargs=True) for module in watched]),
    ):
        yield calls


@contextmanager
def change_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What the module returns, or the first of several things, is what `change` makes of it."""

    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    with _removing([module.register_forward_hook(hook)]):
        yield


@contextmanager
def replace_output(module: nn.Module, output: Any) -> Iterator[None]:
    """The module returns `output` without computing anything."""
    with _replace_forward(module, lambda *_, **__: output):
        yield


@contextmanager
def bypass(module: nn.Module, in_tuple: bool = False) -> Iterator[None]:
    """The module returns its first argument; `in_tuple`: as the one thing in a tuple."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        first = next(iter((*args, *kwargs.values())))
        return (first,) if in_tuple else first

    with _replace_forward(module, forward):
        yield


@contextmanager
def replace_input(*calls: Call) -> Iterator[None]:
    """Modules get the arguments of these calls, each its own in turn, whatever they are called with."""
    modules = dict.fromkeys(call.module for call in calls)
    turns = {module: cycle([call for call in calls if call.module is module]) for module in modules}

    def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        call = next(turns[module])
        return call.args, call.kwargs

    with _removing([module.register_forward_pre_hook(give, with_kwargs=True) for module in modules]):
        yield


@contextmanager
def carry_shared_states(layer: nn.Module, shared: dict[Any, Any]) -> Iterator[None]:
    """What layers hand to later ones beside hidden states: `layer` gets what `shared` holds, which then gets all.

    Only families whose layers share keys and values have such states.
    """
    given: list[Any] = []

    def hand_over(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (states := kwargs.get(SHARED_STATES)) is not None:
            states.update(shared)
            given.append(states)

    try:
        with _removing([layer.register_forward_pre_hook(hand_over, with_kwargs=True)]):
            yield
    finally:
        for states in given:
            shared.update(states)


@contextmanager
def block_diagonal_attention(layers: Sequence[nn.Module], attention_mask: Tensor | None) -> Iterator[None]:
    """In `layers` tokens attend to what both the model's own mask and `attention_mask` allow.

    Args:
        attention_mask: (B, 1, T, T) bool; None leaves the model's own as it is.
    """
    merged: dict[int, tuple[Any, Tensor]] = {}  # most layers get the same mask; held, so that no other gets its id

    def restrict(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        assert attention_mask is not None
        own = kwargs.get("attention_mask")
        if id(own) not in merged:
            merged[id(own)] = own, _merge_masks(own, attention_mask)
        return args, {**kwargs, "attention_mask": merged[id(own)][1]}

    if attention_mask is None:
        yield
        return
    with _removing([layer.register_forward_pre_hook(restrict, with_kwargs=True) for layer in layers]):
        yield


def _merge_masks(own: Tensor | None, allowed: Tensor) -> Tensor:
    """A mask of the same kind as `own`: bool, or added to the scores. None stands for the causal mask."""
    if own is None:
        return allowed.tril()
    allowed = allowed.to(own.device)
    return own & allowed if own.dtype == torch.bool else own.masked_fill(~allowed, torch.finfo(own.dtype).min)


@contextmanager
def _stopped_by(sender: object) -> Iterator[None]:
    """Ends the block where the sender stops the pass; another sender's signal goes on to its own block."""
    try:
        yield
    except StopForward as signal:
        if signal.sender is not sender:
            raise
        # Who still has the traceback, as some versions of Python do until the next error, is not to have what the pass
        # had in memory: its frames are left, and hold their tensors.
        traceback.clear_frames(signal.__traceback__)
        signal.__traceback__ = None


@contextmanager
def _removing(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = vars(module).get("forward")  # accelerate puts one there
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # the class's own is seen again
        if before is not None:
            module.forward = before
