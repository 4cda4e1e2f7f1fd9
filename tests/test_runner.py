"""One batch through the model: the same from wherever it starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from chip.data.hierarchy import Hierarchy
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.forward.mid_layer import MidLayer, trace_mid_layer
from chip.model.forward.runner import ForwardRunner
from chip.model.forward.start import ConnectorInputs, HiddenStates, InsideLayer, Pixels, Start, TextEmbeddings
from chip.model.forward.trace import Call, record_calls, trace
from chip.model.loading import VLM

LAYER = 2
"""Of the demo's four, the one to start at."""


@pytest.fixture
def batch(vlm: VLM, hierarchy: Hierarchy) -> Batch:
    """Of rows that hold several records each."""
    batch = next(vlm.batches(hierarchy.records, range(40), BatchSize(20)).made())
    assert batch.attention_mask is not None
    return batch


def text_call(vlm: VLM, batch: Batch) -> tuple[Call, Tensor]:
    """What the text model is called with, and its embeddings."""
    with record_calls([vlm.language], vlm.language) as calls:
        ForwardRunner(vlm).run(batch, Pixels())
    return calls[0], calls[0].kwargs.pop("inputs_embeds")


def starts(vlm: VLM, batch: Batch) -> dict[str, Start]:
    runner, mid_layer, states = ForwardRunner(vlm), MidLayer(), list[Any]()
    with record_calls(vlm.connectors, vlm.language) as calls:
        runner.run(batch, Pixels())
    call, embeddings = text_call(vlm, batch)
    before = vlm.layers[LAYER - 1]
    observe = [trace(before, output=lambda _, y: states.append(y)), trace_mid_layer(vlm.layers[LAYER], mid_layer)]
    runner.run(batch, Pixels(), vlm.layers[LAYER], observe)
    return {
        "connectors": ConnectorInputs(calls),
        "embeddings": TextEmbeddings(call, embeddings),
        "layer": HiddenStates(call, states[0], LAYER - 1),
        "inside": InsideLayer(call, states[0], LAYER, mid_layer),
    }


@pytest.mark.parametrize("name", ["connectors", "embeddings", "layer", "inside"])
def test_a_run_gives_the_same_from_wherever_it_starts(vlm: VLM, batch: Batch, name: str) -> None:
    def last_states(start: Start, batch: Batch) -> Tensor:
        states: list[Tensor] = []
        last = vlm.layers[-1]
        ForwardRunner(vlm).run(batch, start, last, [trace(last, output=lambda _, y: states.append(y))])
        (result,) = states
        return result

    start = starts(vlm, batch)[name]
    run = batch if name == "connectors" else batch.without_inputs()
    torch.testing.assert_close(last_states(start, run), last_states(Pixels(), batch), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["connectors", "layer", "inside"])
def test_what_comes_before_the_start_is_not_computed(vlm: VLM, batch: Batch, name: str) -> None:
    start, ran = starts(vlm, batch)[name], list[str]()
    inside = vlm.layers[LAYER]
    parts = {
        "tower": vlm.tower_layers[0].mlp,
        "earlier": vlm.layers[0].mlp,
        "attention": inside.self_attn.q_proj,
        "down": inside.mlp.down_proj,
    }
    observe = [trace(part, input=lambda _, of=of: ran.append(of)) for of, part in parts.items()]  # type: ignore[misc]
    ForwardRunner(vlm).run(batch, start, inside, observe)
    assert ran == {"connectors": list(parts)[1:], "layer": list(parts)[2:], "inside": ["down"]}[name]


def test_connectors_run_alone(vlm: VLM, batch: Batch) -> None:
    start, ran = starts(vlm, batch)["connectors"], list[Any]()
    (connector,) = vlm.connectors
    observe = [trace(connector, output=lambda _, y: ran.append(y)), trace(vlm.language, input=ran.append)]
    ForwardRunner(vlm).run(batch.without_inputs(), start, connector, observe)
    assert len(ran) == 1
