"""Watching, cutting short and standing in for parts of a model while it runs; everything is undone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chip.vlm.sites import Site


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """The module that was waited for has been called, or has returned."""


class Call:
    """The arguments that a module was called with."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module, self._args, self._kwargs = module, args, kwargs

    def again(self) -> Any:
        return self.module(*self._args, **self._kwargs)


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
def watching(model: nn.Module, site: Site, see: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Shows what goes into the site and what comes out of it."""
    if site.bare:
        with _Multiplied(model.get_parameter(site.name), see):
            yield
        return
    handle = model.get_submodule(site.name).register_forward_hook(lambda _, args, output: see(args[0], output))
    try:
        yield
    finally:
        handle.remove()


class _Multiplied(TorchFunctionMode):
    """Shows each product x @ matrix."""

    _products = (torch.matmul, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.mm)

    def __init__(self, matrix: Tensor, see: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self._matrix, self._see = matrix, see

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in self._products and args[1:2] and args[1] is self._matrix:
            self._see(args[0], output)
        return output


@contextmanager
def returning(module: nn.Module, output: Any) -> Iterator[None]:
    """The module returns `output` without computing anything."""
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward  # the class's own forward is seen again


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
