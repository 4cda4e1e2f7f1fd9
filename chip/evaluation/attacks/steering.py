"""One steering vector: what an edit took from some records, added while others are asked (after arXiv 2606.03291).

The vector is the mean difference between hidden states before and after the edit, at the tokens that predict an answer.
It comes from *other* targets, or where there is but one from retained records: none of what is asked is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from chip.evaluation.answer_tokens import AnswerTokens, answer_tokens
from chip.evaluation.attacks.base import ORIGINAL, Attack
from chip.evaluation.context import EvalContext
from chip.evaluation.hidden_states import at_answers, change_at_answers
from chip.model.batching.batch import Batch
from chip.model.batching.retry import run_batches
from chip.model.loading import VLM

MOST_RECORDS = 256
"""Records that a vector is the mean over, at most."""

Vectors = Mapping[int, Tensor]
"""Layer -> (d,), fp32 on the host."""


@dataclass(frozen=True)
class Steering(Attack):
    name = "steering"
    help = "What the edit took from other records, as one vector, is added to the hidden states."
    needs = frozenset({ORIGINAL})

    depths: Sequence[float] = (0.25, 0.5, 0.75)
    """Behind which layers it is added, as shares of the text model's depth."""
    strengths: Sequence[float] = (1.0, 2.0)
    """What the mean difference is multiplied by."""

    def run(self, context: EvalContext) -> None:
        assert context.partition is not None
        count = len(context.vlm.layers)
        layers = list(dict.fromkeys(min(round(depth * count), count - 1) for depth in self.depths))
        of_target = self._vectors(context, layers)
        if not of_target:
            context.skip(self.name, "there is neither another target nor anything retained to take a vector from")
            return
        for layer in layers:
            for strength in self.strengths:
                tokens: dict[int, AnswerTokens] = {}
                for targets, vectors in of_target:
                    tokens |= _steered(context, targets, layer, strength * vectors[layer], self.name)
                context.put_tokens(f"{self.name}: behind layer {layer}, × {strength:g}", tokens)

    def _vectors(self, context: EvalContext, layers: Sequence[int]) -> list[tuple[list[int], Vectors]]:
        """What is asked with each vector: a target with that of the others; the siblings with the last one."""
        assert context.partition is not None
        targets = [[i for i in indices if i in context.members] for indices in context.partition.forget_of.values()]
        attacked, forgotten = set(context.attacked), set(context.partition.forget)
        result = []
        for own, of_node in zip(targets, context.partition.forget_of.values(), strict=True):
            others = [i for each in targets if each is not own for i in each] or list(context.retained)
            if others:
                order = np.random.default_rng(context.seed).permutation(len(others))[:MOST_RECORDS]
                vectors = _difference(context, [others[place] for place in sorted(order.tolist())], layers)
                result.append(([i for i in of_node if i in attacked], vectors))
        if result:
            result.append(([i for i in context.attacked if i not in forgotten], result[-1][1]))
        return result


def _difference(context: EvalContext, indices: Sequence[int], layers: Sequence[int]) -> Vectors:
    """The mean hidden state behind each layer before the edit, less the one after it."""
    assert context.original is not None
    before, after = (mean_states(vlm, context, indices, layers) for vlm in (context.original, context.vlm))
    return {layer: before[layer] - after[layer] for layer in layers}


def mean_states(vlm: VLM, context: EvalContext, indices: Sequence[int], layers: Sequence[int]) -> Vectors:
    """The mean over all tokens that predict an answer to the records at `indices`."""
    sums, count = {layer: torch.zeros((), dtype=torch.float64) for layer in layers}, 0

    @torch.no_grad()
    def compute(batch: Batch) -> None:
        nonlocal sums, count
        with at_answers(vlm, batch, layers) as states:
            vlm.hidden_states(batch)
        own = {layer: states[layer].sum(0, dtype=torch.float32).double().cpu() for layer in layers}
        sums = {layer: sums[layer] + own[layer] for layer in layers}
        count += int(batch.answer.sum())

    records = [context.records[index] for index in indices]
    run_batches(vlm.batches(records, size=context.batch_size), compute)
    return {layer: (total / count).float() for layer, total in sums.items()}


def _steered(
    context: EvalContext, indices: Sequence[int], layer: int, vector: Tensor, what: str
) -> dict[int, AnswerTokens]:
    """The tokens of the answers to the records at `indices`, with the vector added behind a layer."""
    if not indices:
        return {}
    records = [context.records[index] for index in indices]
    during = partial(_adding, context.vlm, layer, vector)
    with context.progress(what, len(records)) as advance:
        tokens = answer_tokens(context.vlm, records, context.batch_size, advance, during)
    return dict(zip(indices, tokens, strict=True))


def _adding(vlm: VLM, layer: int, vector: Tensor, batch: Batch) -> AbstractContextManager[object]:
    return change_at_answers(vlm, batch, layer, lambda states: states + vector.to(states))
