"""One batch through a model, from where it starts to where it stops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import nn

from chip.model.batching.batch import Batch
from chip.model.forward.mid_layer import resume_mid_layer
from chip.model.forward.start import ConnectorInputs, InsideLayer, Pixels, Start, TextEmbeddings, TowerOutputs
from chip.model.forward.trace import (
    block_diagonal_attention,
    bypass,
    carry_shared_states,
    replace_input,
    replace_output,
    stop_after,
    trace,
)
from chip.model.loading import VLM

Hook = AbstractContextManager[object]
"""What is active while a batch runs, as `trace` gives it."""


class ForwardRunner:
    """Runs batches through a model, and holds nothing of them."""

    def __init__(self, vlm: VLM) -> None:
        self._vlm = vlm
        self._tower_gives_tuples = False
        """Whether layers of the vision tower return their hidden states in a tuple: seen when it is run."""

    @torch.no_grad()
    def run(self, batch: Batch, start: Start, stop: nn.Module | None = None, observe: Iterable[Hook] = ()) -> None:
        """Run one batch; tokens of its records see nothing of each other.

        Args:
            batch: on the model's device. Its inputs are needed except where it starts in the text model, or where
                it starts at the connectors and stops at one of them.
            stop: the run ends when this module has returned; None: at the end, or where an observer stops it. From
                `ConnectorInputs` to one of its connectors, those connectors are run and nothing between them.
            observe: observers that are entered in this order before the run, and left after it.
        """
        with ExitStack() as hooks:
            if isinstance(start, ConnectorInputs) and stop in [call.module for call in start.calls]:
                _enter(hooks, observe)
                for call in start.calls:
                    call.run()
                return
            _enter(hooks, self._start_hooks(start))
            behind = start.layers_done if isinstance(start, TextEmbeddings) else 0
            hooks.enter_context(block_diagonal_attention(self._vlm.layers[behind:], batch.attention_mask))
            _enter(hooks, observe)
            if stop is not None:
                hooks.enter_context(stop_after(stop))
            self._forward(batch, start)

    def _start_hooks(self, start: Start) -> Iterator[Hook]:
        """What keeps from computing all that comes before the start."""
        if isinstance(start, Pixels | TowerOutputs):
            yield from (trace(layer, output=self._see_tower) for layer in self._vlm.tower_layers[:1])
        if isinstance(start, TowerOutputs):
            yield from map(replace_output, self._vlm.tower_layers, start.outputs)
        elif isinstance(start, ConnectorInputs):
            yield from (bypass(layer, self._tower_gives_tuples) for layer in self._vlm.tower_layers)
            yield replace_input(*start.calls)
        elif isinstance(start, TextEmbeddings):
            layers, done = self._vlm.layers, start.layers_done
            yield from (replace_output(layer, start.states) for layer in layers[:done])
            yield from (carry_shared_states(layer, start.shared) for layer in layers[done : done + 1])
            if isinstance(start, InsideLayer):
                yield resume_mid_layer(layers[done], start.mid_layer)

    def _see_tower(self, _: object, output: object) -> None:
        self._tower_gives_tuples = isinstance(output, tuple)

    def _forward(self, batch: Batch, start: Start) -> None:
        if isinstance(start, TextEmbeddings):
            # Layers that do not compute ignore the embeddings, but the masks get their shape and device from them.
            embeddings = start.states if start.embeddings is None else start.embeddings
            start.call.run(inputs_embeds=embeddings.to(self._vlm.device))
        else:
            self._vlm.core(**batch.inputs, use_cache=False)


def _enter(hooks: ExitStack, each: Iterable[Hook]) -> None:
    for hook in each:
        hooks.enter_context(hook)
