"""Depth: how far down the answer is gone, by activation patching (UDS, arXiv 2605.24614).

Hidden states of this model are put into the model before the edit, layer by layer, at the tokens that predict the
answer. Where that model still answers, what it needs for it is in them. A retrained model's states show what a model
lacks that never knew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chip.evaluation.attacks.base import ORIGINAL, Attack
from chip.evaluation.context import EvalContext
from chip.evaluation.hidden_states import at_answers, change_at_answers
from chip.model.batching.batch import Batch
from chip.model.batching.retry import run_batches
from chip.model.loading import VLM
from chip.model.scoring import answer_logits

Array = NDArray[np.float64]

LOST = "lost_log_probability"
"""By how much less probable the answer becomes, in nats, mean over its tokens."""
KNOWS = 0.05
"""What a retrained model's states must cost at a layer for the layer to count, in nats; as in the paper."""
MOST_LAYERS, MOST_QUESTIONS = 12, 64


@dataclass(frozen=True)
class Depth(Attack):
    name = "depth"
    help = "The model's hidden states are put into the model before the edit, layer by layer: does that still answer?"
    needs = frozenset({ORIGINAL})

    most_layers: int = MOST_LAYERS
    """Layers, at most, spread over the text model's depth."""
    most: int = MOST_QUESTIONS
    """Questions about the target, at most; they are drawn by the seed."""

    def run(self, context: EvalContext) -> None:
        assert context.original is not None
        if len(context.original.layers) != len(context.vlm.layers):
            context.skip(self.name, "the model before the edit has another number of layers")
            return
        layers = spread(len(context.vlm.layers), self.most_layers)
        indices = context.sample_target(self.most)
        lost: dict[int, dict[int, float]] = {layer: {} for layer in layers}
        records = [context.records[index] for index in indices]
        with context.progress(self.name, len(records)) as advance:

            def compute(batch: Batch) -> None:
                assert context.original is not None
                by_layer = _lost(context.vlm, context.original, batch, layers)
                for layer, values in by_layer.items():
                    lost[layer] |= {indices[place]: value for place, value in values.items()}
                advance(batch.records)

            run_batches(context.vlm.batches(records, size=context.batch_size), compute)
        for layer, values in lost.items():
            context.put(f"{self.name}: layer {layer}", LOST, values)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()})


@torch.no_grad()
def _lost(vlm: VLM, original: VLM, batch: Batch, layers: Sequence[int]) -> dict[int, dict[int, float]]:
    """Layer -> record's place -> what its answer loses there."""
    with at_answers(vlm, batch, layers) as states:
        vlm.hidden_states(batch)
    before = _log_probabilities(original, batch)
    lost = {}
    for layer in layers:
        own = states[layer]
        with change_at_answers(original, batch, layer, lambda there, own=own: own.to(there)):  # type: ignore[misc]
            patched = _log_probabilities(original, batch)
        lost[layer] = {place: before[place] - value for place, value in patched.items()}
    return lost


def _log_probabilities(vlm: VLM, batch: Batch) -> dict[int, float]:
    """Record's place -> mean log-probability of its answer's tokens."""
    owners, logits, wanted = answer_logits(vlm, batch, vlm.hidden_states(batch))
    own: Tensor = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
    return {place: float(own[owners == place].mean()) for place in torch.unique(owners).tolist()}


def unlearning_depth_score(lost: Array, of_retrained: Array, knows: float = KNOWS) -> Array:
    """(records,): Σ_l S₁ clip(S₂ / S₁, 0, 1) / Σ_l S₁ over the layers with S₁ > `knows`; NaN where there is none.

    1: as little of the answer is in the hidden states as in those of a model that never knew it; 0: all of it.

    Args:
        lost: S₂ (layers, records), what the model's own hidden states cost.
        of_retrained: S₁ (layers, records), what the retrained model's cost.
    """
    counted = of_retrained > knows
    full = np.where(counted, of_retrained, 0.0)
    part = np.where(counted, np.clip(lost, 0.0, of_retrained), 0.0)
    total = full.sum(0)
    score: Array = np.divide(part.sum(0), total, out=np.full_like(total, np.nan), where=total > 0)
    return score
