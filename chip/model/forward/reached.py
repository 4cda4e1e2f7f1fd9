"""Batches on their way through a model: what each has reached is held, and all go on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from chip.model.batching.batch import Batch, guard_memory
from chip.model.batching.batches import Batches
from chip.model.families import has_layer_embeddings
from chip.model.forward.activation_store import ActivationStore, StoredBatch
from chip.model.forward.runner import ForwardRunner, Hook
from chip.model.forward.start import Pixels, Start
from chip.model.forward.tower import TowerPass
from chip.model.forward.trace import Call, record_calls, trace
from chip.model.loading import VLM
from chip.model.running import running


class ReachedBatches:
    """`batches`, taken to one point of the model after the other, in the order of data.

    Where weights are streamed, all batches pass a layer before any passes the next: it is read once. Else each batch is
    left before the layers, and whoever runs it takes it through all that are to come.

    What is held is a cache: batches that turn out too large for the memory are made smaller, and start over.
    """

    def __init__(self, vlm: VLM, batches: Batches, place: str | None = None, keep_connectors: bool = False) -> None:
        """
        Args:
            place: where activations are held, as `activation_store.offload` has it.
            keep_connectors: what goes into the connectors stays held when the text model is reached.
        """
        self._vlm, self._batches = vlm, batches
        self._place, self._keep_connectors = place, keep_connectors
        self._runner = ForwardRunner(vlm)
        self._keep_embeddings = has_layer_embeddings(vlm.model)
        self.start_over()

    def start_over(self) -> None:
        self._plan = list(self._batches.plan())
        self._store = ActivationStore(self._place)

    def release(self) -> None:
        """Hold nothing any longer but what goes into the connectors."""
        self._store.release()

    def made(self) -> Iterator[Batch]:
        """The batches, from the records."""
        return self._batches.made(self._plan)

    @torch.no_grad()
    def at_connectors(self) -> list[StoredBatch]:
        """Every batch, with what goes into the connectors."""
        if not self._all_stored(lambda stored: stored.has_connector_inputs):
            for index, (batch, start) in enumerate(zip(self.made(), self._starts(), strict=True)):
                with guard_memory(batch):
                    with record_calls(self._vlm.connectors, self._vlm.language) as calls:
                        if batch.vision.any():
                            self._run(batch, start)
                    self._store.add(index, batch).store_connector_inputs(calls)
        return self._store.stored_batches

    @torch.no_grad()
    def at_text(self, first: int) -> list[StoredBatch]:
        """Every batch, with what goes into the text model, or into a layer that is not behind `first`.

        Where what goes into the connectors is stored, it goes on from there.
        """
        if not self._all_stored(lambda stored: stored.can_reach(first)):
            if self._vlm.weights.streamed:
                self.at_connectors()
            for index, batch in enumerate(self.made()):
                stored = self._store.add(index, batch)
                start: Start = stored.connector_inputs() if stored.has_connector_inputs else Pixels()
                with guard_memory(batch):
                    with record_calls([self._vlm.language], self._vlm.language) as calls:
                        self._run(batch, start)
                    (call,) = calls
                    stored.store_text_call(_with_embeddings(call), self._keep_embeddings)
            if not self._keep_connectors:
                for stored in self._store.stored_batches:
                    stored.release_connector_inputs()
        if self._vlm.weights.streamed:
            self._pass_layers(first)
        return self._store.stored_batches

    def last_states(self) -> Iterator[tuple[Batch, Tensor]]:
        """Every batch, without its inputs, with the text model's last hidden states (B, T, d), behind its norm."""
        found: list[Tensor] = []
        for stored in self.at_text(len(self._vlm.layers)):
            with guard_memory(stored.batch):
                watch = trace(self._vlm.language, output=lambda _, y: found.append(y.last_hidden_state))
                self._run(stored.batch, stored.text_states(len(self._vlm.layers)), observe=[watch])
                yield stored.batch, found.pop().to(stored.batch.segments.device)

    def _run(self, batch: Batch, start: Start, stop: nn.Module | None = None, observe: Iterable[Hook] = ()) -> None:
        with running(self._vlm.model):
            self._runner.run(batch, start, stop, observe)

    def _starts(self) -> Iterator[Start]:
        """Of each batch where its images begin: behind the vision tower where all have gone through that together."""
        if self._vlm.weights.streamed and self._vlm.tower_layers:
            yield from TowerPass(self._vlm, self._place).run(self.made())
        else:
            yield from (Pixels() for _ in self._plan)

    def _pass_layers(self, first: int) -> None:
        """All batches through the layers before `first` that are still to come, one layer after the other.

        A layer that a batch skips, as those that look at images from the side where there is none, is skipped again
        with the next one.
        """
        for index, layer in enumerate(self._vlm.layers[:first]):
            behind = self._vlm.layers[index + 1 : index + 2]
            for stored in self._store.stored_batches:
                if stored.layers_done <= index:
                    with guard_memory(stored.batch):
                        found: list[Tensor] = []
                        start = stored.text_states(index + 1)
                        watch = trace(layer, output=lambda _, y, found=found: found.append(y))  # type: ignore[misc]
                        self._run(stored.batch, start, layer, [watch, *(record_calls([], each) for each in behind)])
                        stored.store_shared(start.shared)
                        if found:
                            stored.store_states(found[0], index + 1)

    def _all_stored(self, reached: Callable[[StoredBatch], bool]) -> bool:
        """Whether every batch has been stored, and has reached what it should."""
        stored = self._store.stored_batches
        return len(stored) == len(self._plan) and all(map(reached, stored))


def _with_embeddings(call: Call) -> Call:
    """The text model's call as one with embeddings: where images are looked at from the side it is given tokens."""
    if call.kwargs.get("inputs_embeds") is None:
        text: Any = call.module
        call.kwargs["inputs_embeds"] = text.get_input_embeddings()(call.kwargs.pop("input_ids"))
    return call
