"""The text model's last hidden states of many batches: batch by batch, or layer by layer where weights are streamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from chip.model.batching.batch import Batch, guard_memory
from chip.model.batching.batches import Batches
from chip.model.batching.retry import retry_smaller, run_batches
from chip.model.forward.reached import ReachedBatches
from chip.model.loading import VLM

R = TypeVar("R")


@torch.no_grad()
def map_last_states(vlm: VLM, batches: Batches, compute: Callable[[Batch, Tensor], R]) -> list[R]:
    """What `compute` makes of each batch and of its last hidden states (B, T, d), behind the norm, where the batch is.

    Args:
        compute: it may be called again for the same records, in smaller batches, and may find no inputs in the batch.

    Raises:
        InputError: the model does not take what the processor makes of a record, or its files are gone.
        RunError: a single row does not fit into memory.
    """
    if vlm.weights.streamed:
        reached = ReachedBatches(vlm, batches)
        return retry_smaller(batches, lambda: _computed(reached, compute), reached.start_over)
    results: list[R] = []
    run_batches(batches, lambda batch: results.append(compute(batch, vlm.hidden_states(batch))))
    return results


def _computed(reached: ReachedBatches, compute: Callable[[Batch, Tensor], R]) -> list[R]:
    results = []
    for batch, states in reached.last_states():
        with guard_memory(batch):
            results.append(compute(batch, states))
    return results
