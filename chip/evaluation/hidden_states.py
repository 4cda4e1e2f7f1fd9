"""Hidden states of a model at the tokens that predict an answer: seen, and changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from chip.model.batching.batch import Batch
from chip.model.forward.trace import change_output, trace
from chip.model.loading import VLM


@contextmanager
def at_answers(vlm: VLM, batch: Batch, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """What the layers return within the block, (n, d) each, n the batch's tokens that predict one of an answer.

    They are in the order of `answer_logits`, on the device of their layer.
    """
    rows, columns = batch.answer.nonzero(as_tuple=True)
    states: dict[int, Tensor] = {}

    def store(layer: int, output: object) -> None:
        value = output[0] if isinstance(output, tuple) else output
        assert isinstance(value, Tensor)
        states[layer] = value[rows.to(value.device), columns.to(value.device) - 1]

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(trace(vlm.layers[layer], output=lambda _, y, layer=layer: store(layer, y)))  # type: ignore[misc]
        yield states


@contextmanager
def change_at_answers(vlm: VLM, batch: Batch, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block what a layer returns at these tokens, (n, d), is changed."""
    rows, columns = batch.answer.nonzero(as_tuple=True)

    def changed(states: Tensor) -> Tensor:
        places = rows.to(states.device), columns.to(states.device) - 1
        return states.index_put(places, change(states[places]))

    with change_output(vlm.layers[layer], changed):
        yield
