"""Watching, cutting short and standing in for parts of a model while it runs; everything is undone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from chip.model.target_modules import TargetModule


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """The module that was waited for has been called, or has returned."""


class Call:
    """The arguments that a module was called with."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module, self.args, self.kwargs = module, args, kwargs

    def again(self) -> Any:
        return self.module(*self.args, **self.kwargs)

    def mapped(self, change: Callable[[Any], Any]) -> Call:
        """The same call with every leaf of its arguments changed."""
        args, kwargs = tree_map(change, (self.args, self.kwargs))
        return Call(self.module, args, kwargs)


def calls_of(modules: Sequence[nn.Module], run: Callable[[], object]) -> list[Call]:
    """What each of `modules` is called with while `run` runs, which ends before the last one would compute."""
    calls: list[Call] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(module, args, kwargs))
        if len(calls) == len(modules):
            raise _Reached

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        run()
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def watching(model: nn.Module, module: TargetModule, see: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Shows what goes into the site and what comes out of it."""
    if module.is_parameter:
        with _Multiplied(model, module.name, see):
            yield
        return
    handle = model.get_submodule(module.name).register_forward_hook(lambda _, args, output: see(args[0], output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def ending_at(model: nn.Module, module: TargetModule, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Shows what goes into the site, and ends the block before anything comes out."""

    def last(x: Tensor) -> None:
        see(x)
        raise _Reached

    if module.is_parameter:
        with suppress(_Reached), _Multiplied(model, module.name, lambda x, _: last(x)):
            yield
        return
    handle = model.get_submodule(module.name).register_forward_pre_hook(lambda _, args: last(args[0]))
    try:
        with suppress(_Reached):
            yield
    finally:
        handle.remove()


class _Multiplied(TorchFunctionMode):
    """Shows each product x @ matrix. The parameter is looked up each time: an offloaded one is another at each run."""

    _products = (torch.matmul, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.mm)

    def __init__(self, model: nn.Module, name: str, see: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self._model, self._name, self._see = model, name, see

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in self._products and args[1:2] and args[1] is self._model.get_parameter(self._name):
            self._see(args[0], output)
        return output


@contextmanager
def returning(module: nn.Module, output: Any) -> Iterator[None]:
    """The module returns `output` without computing anything."""
    with _standing_in(module, lambda *_, **__: output):
        yield


@contextmanager
def skipped(module: nn.Module) -> Iterator[None]:
    """The module returns its first argument."""
    with _standing_in(module, lambda first, *_, **__: first):
        yield


@contextmanager
def _standing_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = vars(module).get("forward")  # accelerate puts one there
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # the class's own is seen again
        if before is not None:
            module.forward = before


@contextmanager
def fed(call: Call) -> Iterator[None]:
    """The call's module gets the call's arguments, whatever it is called with."""
    handle = call.module.register_forward_pre_hook(lambda *_: (call.args, call.kwargs), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def keeping_apart(layers: Sequence[nn.Module], visible: Tensor | None) -> Iterator[None]:
    """In the attention of `layers`, tokens see what the model's own mask and `visible` allow; None: all of the former.

    Args:
        visible: (B, 1, T, T) bool.
    """
    restricted: dict[int, tuple[Any, Tensor]] = {}  # most layers get the same mask; kept, so that no other gets its id

    def restrict(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        assert visible is not None
        own = kwargs.get("attention_mask")
        if id(own) not in restricted:
            restricted[id(own)] = own, _both(own, visible)
        return args, {**kwargs, "attention_mask": restricted[id(own)][1]}

    if visible is None:
        yield
        return
    handles = [layer.register_forward_pre_hook(restrict, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _both(own: Tensor | None, visible: Tensor) -> Tensor:
    """A mask of the same kind as `own`: bool, or added to the scores. None stands for the causal mask."""
    if own is None:
        return visible.tril()
    visible = visible.to(own.device)
    return own & visible if own.dtype == torch.bool else own.masked_fill(~visible, torch.finfo(own.dtype).min)


@contextmanager
def output_of(module: nn.Module) -> Iterator[list[Any]]:
    """The list gets what the module returns."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The list gets the module's first argument, before any other hook is called."""
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]), prepend=True)
    try:
        yield inputs
    finally:
        handle.remove()


@contextmanager
def stopping_behind(module: nn.Module) -> Iterator[None]:
    """Ends the block when the module has returned."""

    def hook(*_: Any) -> None:
        raise _Reached

    handle = module.register_forward_hook(hook)
    try:
        yield
    except _Reached:
        pass
    finally:
        handle.remove()
