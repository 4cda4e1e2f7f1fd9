"""All batches through the vision tower, layer by layer: each layer's weights are needed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from chip.model.batching.batch import Batch, guard_memory
from chip.model.forward.activation_store import offload, onload
from chip.model.forward.runner import ForwardRunner
from chip.model.forward.start import Pixels, TowerOutputs
from chip.model.forward.trace import Call, record_calls, replace_output, trace
from chip.model.loading import VLM
from chip.model.running import running

_READ: WeakKeyDictionary[Any, frozenset[int]] = WeakKeyDictionary()
"""Model -> `layers_read` of it."""


@dataclass
class _Images:
    """How far the images of one batch have got."""

    batch: Batch
    """Without inputs."""
    call: Call
    """What the tower is called with."""
    outputs: list[Any] = field(default_factory=list)
    """Of the layers that have run; None where nobody will ask for it."""


class TowerPass:
    """Runs the batches that have images through the layers of the vision tower, one layer after the other."""

    def __init__(self, vlm: VLM, place: str | None) -> None:
        """
        Args:
            place: where hidden states are held, as `activation_store.offload` has it.
        """
        self._vlm, self._place, self._runner = vlm, place, ForwardRunner(vlm)

    def run(self, made: Iterable[Batch]) -> Iterator[TowerOutputs]:
        """For each of the batches where to go on behind the tower; from nothing where one has no image.

        Raises:
            BatchTooLargeError: the device has no memory left for a batch.
        """
        images = [self._begin(batch) for batch in made]
        for index in range(len(self._vlm.tower_layers)):
            for each in images:
                if each is not None:
                    with guard_memory(each.batch):
                        self._step(each, index)
        for each in images:
            outputs = [] if each is None else onload(each.outputs)
            yield TowerOutputs([outputs[-1] if output is None else output for output in outputs])

    def _begin(self, batch: Batch) -> _Images | None:
        if not batch.vision.any():
            return None
        with guard_memory(batch):
            with record_calls([self._vlm.tower], self._vlm.tower) as calls, running(self._vlm.model):
                self._runner.run(batch, Pixels())
            if not calls:  # its parts are called one by one: each batch goes through them by itself
                return None
            (call,) = calls
            if self._vlm.model not in _READ:
                _READ[self._vlm.model] = layers_read(self._vlm, batch, call)
        return _Images(batch.without_inputs(), call.map(lambda value: offload(value, self._place)))

    @torch.no_grad()
    def _step(self, each: _Images, index: int) -> None:
        """Run the images through one layer."""
        layers, output = self._vlm.tower_layers, list[Any]()
        last = onload(each.outputs[-1]) if each.outputs else None
        with ExitStack() as hooks:
            for layer in layers[:index]:
                hooks.enter_context(replace_output(layer, last))
            hooks.enter_context(trace(layers[index], output=lambda _, y: output.append(y), stop=True))
            hooks.enter_context(running(self._vlm.model))
            each.call.map(onload).run()
        if each.outputs and index - 1 not in _READ[self._vlm.model]:
            each.outputs[-1] = None
        each.outputs.append(offload(output[0], self._place))


@torch.no_grad()
def layers_read(vlm: VLM, batch: Batch, call: Call) -> frozenset[int]:
    """The layers of the vision tower whose outputs matter to more than the next layer: the last one in most families,
    the last but one in some, and further ones where connectors look into the tower's depth.

    Found by NaN in each one's place: does it reach a connector? Where layers are not alike, all are taken to matter.

    Args:
        batch: with an image, and its inputs.
        call: what the tower is called with for it.
    """
    layers, runner, first_output = vlm.tower_layers, ForwardRunner(vlm), list[Any]()
    if len({tuple(parameter.shape for parameter in layer.parameters()) for layer in layers}) > 1:
        return frozenset(range(len(layers)))
    with trace(layers[0], output=lambda _, y: first_output.append(y), stop=True):
        call.run()

    def matters(index: int) -> bool:
        outputs = [_filled(first_output[0], torch.nan if each == index else 0.0) for each in range(len(layers))]
        with record_calls(vlm.connectors, vlm.language) as calls:
            runner.run(batch, TowerOutputs(outputs))
        return any(bool(value.isnan().any()) for value in _floats(calls))

    return frozenset(filter(matters, range(len(layers))))


def _filled(output: Any, value: float) -> Any:
    """The same structure with tensors of nothing but this value."""
    return tree_map_only(Tensor, lambda tensor: torch.full_like(tensor, value), output)


def _floats(calls: Sequence[Call]) -> Iterator[Tensor]:
    """All floating-point tensors in the arguments of the calls."""
    for leaf in tree_leaves([(call.args, call.kwargs) for call in calls]):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            yield leaf
