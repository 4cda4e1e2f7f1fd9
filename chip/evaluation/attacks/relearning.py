"""Relearning: what a little training on other records brings back. An attack: nothing else in chip takes a gradient."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from chip.data.record import Record
from chip.errors import InputError, RunError
from chip.evaluation.attacks.base import Attack
from chip.evaluation.context import EvalContext
from chip.model.batching.batch_size import BatchSize, out_of_memory
from chip.model.batching.batches import Batches
from chip.model.loading import VLM
from chip.model.restoring import restoring
from chip.model.scoring import answer_logits

BUDGETS = (10, 30, 100)  # gradient steps
RATE = 1e-4
BATCH = 32  # records a step


@dataclass(frozen=True)
class Relearning(Attack):
    name = "relearning"
    help = "The model is trained a little on records of others."
    standard = True

    budgets: Sequence[int] = BUDGETS
    """Gradient steps after which the model is asked, ascending."""

    def run(self, context: EvalContext) -> None:
        retained = [context.records[index] for index in context.retained]
        with (
            context.progress(self.name, max(self.budgets)) as advance,
            closing(relearning(context.vlm, retained, context.seed, self.budgets, advance)) as budgets,
        ):
            for steps in budgets:
                context.score_attacked(f"{self.name}: {steps} steps")


def relearning(
    vlm: VLM,
    records: Sequence[Record],
    seed: int,
    budgets: Sequence[int] = BUDGETS,
    on_step: Callable[[int], None] = lambda _: None,
) -> Generator[int, None, None]:
    """Fine-tune the whole model on `records`, and stop at each of `budgets` (ascending), which is yielded: ask it then.

    AdamW with torch's defaults but for its constant rate; the answers' cross-entropy; records in an order drawn by the
    seed, anew once all are through; no dropout. Weights narrower than fp32 are trained on an fp32 copy of them. When
    the iterator ends, or is closed, the model is as it was.

    Raises:
        InputError: part of the model is offloaded, or there are no records.
        RunError: gradients and AdamW's moments, 12 bytes a weight and more, do not fit into memory.
    """
    if not records:
        raise InputError("nothing to relearn from: no other record was trained on")
    if any(parameter.is_meta for parameter in vlm.model.parameters()):
        raise InputError("relearning needs the whole model on its devices; leave it out, or take a larger device")
    parameters = list(vlm.model.parameters())
    with restoring(vlm), _trainable(parameters):
        try:
            yield from _train(vlm, parameters, records, seed, budgets, on_step)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise RunError(f"relearning does not fit into the memory of {vlm.device}; leave it out") from error


@contextmanager
def _trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The parameters take gradients for a while, and have none afterwards."""
    requires_grad = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, before in zip(parameters, requires_grad, strict=True):
            parameter.requires_grad_(before)
            parameter.grad = None


def _train(
    vlm: VLM,
    parameters: Sequence[nn.Parameter],
    records: Sequence[Record],
    seed: int,
    budgets: Sequence[int],
    on_step: Callable[[int], None],
) -> Iterator[int]:
    masters = [p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for p in parameters]
    optimizer = torch.optim.AdamW(masters, lr=RATE)
    batches = _shuffled(len(records), seed)
    for step in range(1, max(budgets) + 1):
        optimizer.zero_grad()
        _add_gradients(vlm, records, next(batches))
        for master, parameter in zip(masters, parameters, strict=True):
            if master is not parameter and parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.float(), None
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, parameters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
        on_step(1)
        if step in budgets:
            yield step


def _shuffled(count: int, seed: int) -> Iterator[list[int]]:
    """Indices of the records of one step after the other."""
    shuffle, order = torch.Generator().manual_seed(seed), list[int]()
    while True:
        while len(order) < min(BATCH, count):
            order += torch.randperm(count, generator=shuffle).tolist()
        yield list(dict.fromkeys(order[:BATCH]))  # at the seam of two rounds a record may stand twice
        del order[:BATCH]


def _add_gradients(vlm: VLM, records: Sequence[Record], indices: Sequence[int]) -> None:
    """Of the mean cross-entropy over all tokens of these answers; records that cannot stand in one batch add up."""
    batches = Batches(vlm, records, indices, BatchSize(len(indices)), together=False)
    made = list(batches.made())
    tokens = sum(int(batch.answer.sum()) for batch in made)
    for batch in made:
        states = vlm.hidden_states(batch, gradients=True)
        _, logits, wanted = answer_logits(vlm, batch, states)
        loss = nn.functional.cross_entropy(logits, wanted, reduction="sum") / tokens
        loss.backward()  # type: ignore[no-untyped-call]
