"""All records on their way through the model, one place at a time.

The hidden states of every batch are held where they have got to. So each layer can be run, looked at, edited and run
again without starting over, and nothing behind the last layer asked for is ever computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from chip.errors import InputError
from chip.moments import Tokens
from chip.records import Record
from chip.vlm.hooks import Call, calls_of, output_of, returning, stopping_behind, watching
from chip.vlm.loading import VLM
from chip.vlm.prompts import Batch
from chip.vlm.sites import Site, Stage

Observer = Callable[[Tokens], None]


class Flow:
    """Runs `batches` through the model, up to one stage after the other, in the order of data.

    What goes into a stage's first layer is held for all batches when the stage is observed; sites before it must have
    their final weights by then.
    """

    def __init__(self, vlm: VLM, batches: Sequence[Batch], records: Sequence[Record]) -> None:
        self._vlm = vlm
        self._batches = [batch.to(vlm.device) for batch in batches]
        self._records = records
        self._connectors = {m: f"{name}." for name, m in vlm.model.named_modules() if m in vlm.connectors}
        self._at_connectors: list[list[Call]] = []
        self._at_language: list[Call] = []
        self._held: list[Any] = []
        self._passed = -1
        """Index of the last layer whose outputs are held; -1: the text model's inputs are."""

    def observe(self, stage: Stage, observers: Mapping[str, Observer], on_batch: Callable[[int], None]) -> None:
        """Run all batches up to the stage's last site and show each site's tokens to its observer.

        Args:
            observers: site name -> what takes its tokens.
            on_batch: told after each batch how many records it had.

        Raises:
            InputError: an activation is NaN or infinite, or no data reach a site.
        """
        held: list[Any] = []
        reached: set[Site] = set()
        for index, batch in enumerate(self._batches):
            with ExitStack() as hooks:
                for site in stage.sites:
                    see = self._see(site, batch, observers[site.name], reached)
                    hooks.enter_context(watching(self._vlm.model, site, see))
                held.append(self._run(index, stage))
            on_batch(len(batch.records))
        self._check_reached(stage, reached)
        if stage.first is not None and stage.first > 0:
            self._held, self._passed = held, stage.first - 1

    @torch.no_grad()
    def _run(self, index: int, stage: Stage) -> Any:
        """Run one batch to the stage's last site; what went into the stage's first layer, where that is not the text
        model's first."""
        if stage.last is None:
            self._run_connectors(index, stage)
            return None
        last = self._vlm.layers[stage.last]
        if stage.first is None:
            with stopping_behind(last):
                self._forward(self._batches[index])
            return None
        if not self._at_language:
            self._at_connectors = []
            self._at_language = [self._calls_of([self._vlm.language], batch)[0] for batch in self._batches]
        with ExitStack() as stack:
            for passed in self._vlm.layers[: self._passed + 1]:
                stack.enter_context(returning(passed, self._held[index]))
            before = stack.enter_context(output_of(self._vlm.layers[stage.first - 1])) if stage.first else [None]
            stack.enter_context(stopping_behind(last))
            self._at_language[index].again()
        return before[0]

    def _run_connectors(self, index: int, stage: Stage) -> None:
        """Run those connectors that hold a site of the stage."""
        if not self._at_connectors:
            self._at_connectors = [
                self._calls_of(self._vlm.connectors, batch) if batch.vision.any() else [] for batch in self._batches
            ]
        for call in self._at_connectors[index]:
            if any(site.name.startswith(self._connectors[call.module]) for site in stage.sites):
                call.again()

    def _calls_of(self, modules: Sequence[nn.Module], batch: Batch) -> list[Call]:
        return calls_of(modules, lambda: self._forward(batch))

    def _forward(self, batch: Batch) -> None:
        self._vlm.core(**batch.inputs, use_cache=False)

    def _see(
        self, site: Site, batch: Batch, observer: Observer, reached: set[Site]
    ) -> Callable[[Tensor, Tensor], None]:
        def see(x: Tensor, y: Tensor) -> None:
            split = _connector_tokens if site.layer is None else _text_tokens
            tokens = split(site.name, x, y, batch)
            self._check_finite(site.name, tokens)
            observer(tokens)
            reached.add(site)

        return see

    def _check_reached(self, stage: Stage, reached: set[Site]) -> None:
        images = any(bool(batch.vision.any()) for batch in self._batches)
        for site in stage.sites:
            if site not in reached and (images or site.layer is not None):
                raise InputError(f"{site.name}: no activation passes through it; choose other --sites")

    def _check_finite(self, name: str, tokens: Tokens) -> None:
        bad = ~(tokens.inputs.isfinite().all(1) & tokens.outputs.isfinite().all(1))
        if bad.any():
            record = self._records[int(tokens.records[bad][0])]
            raise InputError(
                f"{name}: an activation is NaN or infinite for the record at {record.where}; "
                "check the checkpoint's weights, or compute in a wider dtype"
            )


def _text_tokens(_: str, x: Tensor, y: Tensor, batch: Batch) -> Tokens:
    real = batch.real
    return Tokens(x[real], y[real], batch.records.repeat_interleave(real.sum(1)), batch.keys[real])


def _connector_tokens(name: str, x: Tensor, y: Tensor, batch: Batch) -> Tokens:
    """The connector's tokens by record. Images stand in the order of records, so counting is enough."""
    flat_x, flat_y = x.flatten(0, -2), y.flatten(0, -2)
    per_record = batch.vision.sum(1)
    if flat_x.shape[0] != int(per_record.sum()):  # pooled or cut behind the connector: like images have like shares
        share, rest = divmod(flat_x.shape[0], len(batch.records))
        if rest or int(per_record.min()) != int(per_record.max()):
            raise InputError(
                f"{name}: {flat_x.shape[0]} image tokens cannot be told apart among {len(batch.records)} records; "
                "use --batch-size 1"
            )
        per_record = torch.full_like(per_record, share)
    ends = per_record.cumsum(0).repeat_interleave(per_record)
    position = torch.arange(flat_x.shape[0], device=x.device)
    index = position - (ends - per_record.repeat_interleave(per_record))
    return Tokens(flat_x, flat_y, batch.records.repeat_interleave(per_record), -1 - index)
