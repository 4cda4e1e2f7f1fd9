"""Statistics of all records, one stage of target modules after the other.

What every batch has reached is held. So each layer can be run, looked at, edited and run again without starting over,
the vision tower is run once, and nothing behind the last layer asked for is ever computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from chip.data.record import Record
from chip.model.batching.batch import Batch, BatchTooLargeError, guard_memory
from chip.model.batching.batches import Batches
from chip.model.batching.retry import retry_smaller
from chip.model.families import family_of
from chip.model.forward.activation_store import StoredBatch
from chip.model.forward.mid_layer import MidLayer, has_mid_layer, trace_mid_layer
from chip.model.forward.observer import StageObserver, image_rows
from chip.model.forward.reached import ReachedBatches
from chip.model.forward.runner import ForwardRunner, Hook
from chip.model.forward.start import ConnectorInputs, Pixels
from chip.model.forward.trace import trace
from chip.model.loading import VLM
from chip.model.restoring import holding
from chip.model.stages import Stage
from chip.model.target_modules import Component, TargetModule
from chip.model.tokens import Statistics

S = TypeVar("S", bound=Statistics)
Run = Callable[[Iterable[Hook]], None]
"""Runs one batch through a stage while it is observed."""


class Collector:
    """Runs `batches` through the model, up to one stage after the other, in the order of data.

    Modules before a stage must have their final weights when it is observed. What is held between stages is a cache:
    batches that turn out too large for the memory are made smaller, and start over.
    """

    def __init__(
        self,
        vlm: VLM,
        batches: Batches,
        records: Sequence[Record],
        place: str | None = None,
        keep_connectors: bool = False,
    ) -> None:
        """
        Args:
            place: where activations are held, as `activation_store.offload` has it.
            keep_connectors: what goes into the connectors stays held, for stages in them after those of the text model.
        """
        self._vlm, self._batches, self._records = vlm, batches, records
        self._runner = ForwardRunner(vlm)
        self._reached = ReachedBatches(vlm, batches, place, keep_connectors)

    @torch.no_grad()
    def collect(
        self,
        stage: Stage,
        create: Callable[[TargetModule], S],
        on_batch: Callable[[int], None],
        *,
        needs_outputs: bool,
        overrides: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> dict[TargetModule, S]:
        """Run all batches up to the stage's last module, and show its tokens to each module's statistics.

        Args:
            create: statistics of a target module, of no tokens yet.
            on_batch: called after each batch with how many records it had.
            needs_outputs: whether the tokens have outputs; without, the stage's one target module is not computed.
            overrides: parameters before that module, in its connector, and values they are to have: the tokens are
                those of a model with these, and `original_inputs` those of the model as it is. Only without outputs.

        Returns:
            The statistics of all processes.

        Raises:
            InputError: an activation is NaN or infinite, or no data reach a module.
            RunError: not even a single row fits into memory, or activations do not fit on the disk.
        """

        def attempt() -> StageObserver[S]:
            observer = StageObserver(self._vlm, self._records, stage, create, needs_outputs)
            self._observe(observer, stage, on_batch, needs_outputs, overrides)
            return observer

        return retry_smaller(self._batches, attempt, self._reached.start_over).merged(self._batches.distributed)

    def _observe(
        self,
        observer: StageObserver[S],
        stage: Stage,
        on_batch: Callable[[int], None],
        needs_outputs: bool,
        overrides: Mapping[str, Tensor],
    ) -> None:
        """Show every batch to the observer."""
        done = 0
        try:
            for batch, run in self._runs(stage, needs_outputs):
                with guard_memory(batch):
                    original_inputs = self._original_inputs(stage, batch, run) if overrides else None
                    with holding(self._vlm, overrides):
                        run(observer.hooks(batch, original_inputs))
                on_batch(batch.records)
                done += batch.records
        except BatchTooLargeError:
            on_batch(-done)
            raise

    def _original_inputs(self, stage: Stage, batch: Batch, run: Run) -> Tensor | None:
        """What goes into the stage's first module in the model as it is; None where the batch does not reach it."""
        calls: list[tuple[Tensor, ...]] = []
        run([trace(self._vlm.model, stage.target_modules[0], input=lambda x: calls.append((x.flatten(0, -2),)))])
        return image_rows(calls, batch, family_of(self._vlm.model).padded_images)[0] if calls else None

    def release(self) -> None:
        """Hold nothing any longer but what goes into the connectors."""
        self._reached.release()

    def _runs(self, stage: Stage, needs_outputs: bool) -> Iterator[tuple[Batch, Run]]:
        """Each batch with what runs it through the stage."""
        first, last = stage.target_modules[0], stage.target_modules[-1]
        if last.component is Component.CONNECTOR:
            for stored in self._reached.at_connectors():
                yield stored.batch, partial(self._run_connectors, stored, stage)
        elif first.component is Component.CONNECTOR:
            stop = _layer_of(last)
            for batch in self._reached.made():
                yield batch, partial(self._runner.run, batch, Pixels(), self._vlm.layers[stop])
        else:
            for stored in self._reached.at_text(_layer_of(first)):
                yield stored.batch, partial(self._run_layers, stored, stage, needs_outputs)

    def _run_connectors(self, stored: StoredBatch, stage: Stage, observe: Iterable[Hook]) -> None:
        """Run those connectors that hold a module of the stage."""
        numbers = {module.connector for module in stage.target_modules}
        calls = [call for call in stored.connector_inputs().calls if self._vlm.connectors.index(call.module) in numbers]
        if calls:
            self._runner.run(stored.batch, ConnectorInputs(calls), calls[-1].module, observe)

    def _run_layers(self, stored: StoredBatch, stage: Stage, needs_outputs: bool, observe: Iterable[Hook]) -> None:
        """Run one batch to the stage's last module, and store what goes into the stage's first layer.

        Where the stage's one module is the last of its layer and not computed, what comes before it in the layer is
        stored too, so that only this last part is run again, with its new weights.
        """
        layers, first, last = self._vlm.layers, _layer_of(stage.target_modules[0]), stage.target_modules[-1]
        before: list[Tensor] = []
        hooks: list[Hook] = []
        if first > stored.layers_done:
            hooks.append(trace(layers[first - 1], output=lambda _, states: before.append(states)))
        stop, mid_layer = layers[_layer_of(last)], None
        if not needs_outputs and last.kind == "down" and has_mid_layer(stop):
            mid_layer = MidLayer()
            hooks.append(trace_mid_layer(stop, mid_layer))
        start = stored.text_states(first)
        self._runner.run(stored.batch, start, stop, [*hooks, *observe])
        stored.store_shared(start.shared)
        if before:
            stored.store_states(before[0], first)
        if mid_layer is not None and stored.layers_done == _layer_of(last):  # not where the layer before was skipped
            stored.store_mid_layer(mid_layer)


def _layer_of(module: TargetModule) -> int:
    """Index of the layer that a module of the text model lies in."""
    assert module.layer is not None
    return module.layer
