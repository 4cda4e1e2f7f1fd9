"""All records on their way through the model, one place at a time.

The hidden states of every batch are held where they have got to. So each layer can be run, looked at, edited and run
again without starting over, and nothing behind the last layer asked for is ever computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chip.errors import InputError
from chip.moments import Tokens
from chip.records import Record
from chip.vlm.loading import VLM
from chip.vlm.prompts import Batch
from chip.vlm.sites import Site, Stage

Observer = Callable[[Tokens], None]


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """The module that was waited for has been called, or has returned."""


@dataclass
class _Call:
    """The arguments that a module was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Flow:
    """Runs `batches` through the model, up to one stage after the other, in the order of data.

    What goes into a stage's first layer is held for all batches when the stage is observed; sites before it must have
    their final weights by then.
    """

    def __init__(self, vlm: VLM, batches: Sequence[Batch], records: Sequence[Record]) -> None:
        self._vlm = vlm
        self._batches = [batch.to(vlm.device) for batch in batches]
        self._records = records
        self._at_connector: list[_Call | None] = []  # None: a batch without images
        self._at_language: list[_Call] = []
        self._held: list[Any] = []
        self._passed = -1
        """Index of the last layer whose outputs are held; -1: the text model's inputs are."""

    def observe(self, stage: Stage, observers: Mapping[str, Observer], on_batch: Callable[[int], None]) -> None:
        """Run all batches up to the stage's last site and show each site's tokens to its observer.

        Args:
            observers: site name -> what takes its tokens.
            on_batch: told after each batch how many records it had.

        Raises:
            InputError: an activation is NaN or infinite.
        """
        held = []
        for index, batch in enumerate(self._batches):
            with ExitStack() as hooks:
                for site in stage.sites:
                    module = self._vlm.model.get_submodule(site.name)
                    hook = self._hook(site, batch, observers[site.name])
                    hooks.callback(module.register_forward_hook(hook).remove)
                held.append(self._run(index, stage))
            on_batch(len(batch.records))
        if stage.first is not None and stage.first > 0:
            self._held, self._passed = held, stage.first - 1

    @torch.no_grad()
    def _run(self, index: int, stage: Stage) -> Any:
        """Run one batch to the stage's last site; what went into the stage's first layer, where that is not the text
        model's first."""
        if stage.last is None:
            self._run_connector(index)
            return None
        last = self._vlm.layers[stage.last]
        if stage.first is None:
            with _stopping_behind(last):
                self._vlm.core(**self._batches[index].inputs, use_cache=False)
            return None
        if not self._at_language:
            self._at_connector = []
            self._at_language = [self._call_of(self._vlm.language, batch) for batch in self._batches]
        call = self._at_language[index]
        with ExitStack() as stack:
            for passed in self._vlm.layers[: self._passed + 1]:
                stack.enter_context(_returning(passed, self._held[index]))
            before = stack.enter_context(_output_of(self._vlm.layers[stage.first - 1])) if stage.first else [None]
            stack.enter_context(_stopping_behind(last))
            self._vlm.language(*call.args, **call.kwargs)
        return before[0]

    def _run_connector(self, index: int) -> None:
        if not self._at_connector:
            self._at_connector = [
                self._call_of(self._vlm.connector, batch) if batch.vision.any() else None for batch in self._batches
            ]
        call = self._at_connector[index]
        if call is not None:
            self._vlm.connector(*call.args, **call.kwargs)

    def _hook(self, site: Site, batch: Batch, observer: Observer) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            split = _connector_tokens if site.layer is None else _text_tokens
            tokens = split(site.name, args[0], output, batch)
            self._check_finite(site.name, tokens)
            observer(tokens)

        return hook

    def _check_finite(self, name: str, tokens: Tokens) -> None:
        bad = ~(tokens.inputs.isfinite().all(1) & tokens.outputs.isfinite().all(1))
        if bad.any():
            record = self._records[int(tokens.records[bad][0])]
            raise InputError(
                f"{name}: an activation is NaN or infinite for the record at {record.where}; "
                "check the checkpoint's weights, or compute in a wider dtype"
            )

    @torch.no_grad()
    def _call_of(self, module: nn.Module, batch: Batch) -> _Call:
        """What `module` is called with on the batch."""
        calls: list[_Call] = []

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(_Call(args, kwargs))
            raise _Reached

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            self._vlm.core(**batch.inputs, use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()
        return calls[0]


@contextmanager
def _returning(module: nn.Module, output: Any) -> Iterator[None]:
    """The module returns `output` without computing anything."""
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward  # the class's own forward is seen again


@contextmanager
def _output_of(module: nn.Module) -> Iterator[list[Any]]:
    """The list gets what the module returns."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def _stopping_behind(module: nn.Module) -> Iterator[None]:
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


def _text_tokens(_: str, x: Tensor, y: Tensor, batch: Batch) -> Tokens:
    real = batch.real
    return Tokens(x[real], y[real], batch.records.repeat_interleave(real.sum(1)), batch.keys[real])


def _connector_tokens(name: str, x: Tensor, y: Tensor, batch: Batch) -> Tokens:
    """The connector's tokens by record. Images stand in the order of records, so counting is enough."""
    flat_x, flat_y = x.flatten(0, -2), y.flatten(0, -2)
    per_record = batch.vision.sum(1)
    if flat_x.shape[0] != int(per_record.sum()):  # pooled or unpadded behind the connector: equal shares, if at all
        share, rest = divmod(flat_x.shape[0], len(batch.records))
        if rest:
            raise InputError(
                f"{name}: {flat_x.shape[0]} image tokens cannot be told apart among {len(batch.records)} records; "
                "use --batch-size 1"
            )
        per_record = torch.full_like(per_record, share)
    ends = per_record.cumsum(0).repeat_interleave(per_record)
    position = torch.arange(flat_x.shape[0], device=x.device)
    index = position - (ends - per_record.repeat_interleave(per_record))
    return Tokens(flat_x, flat_y, batch.records.repeat_interleave(per_record), -1 - index)
