"""What a model answers: exact match and answer probability of each record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chip.data.record import Record
from chip.distributed import DistributedContext
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.batches import Batches
from chip.model.loading import VLM
from chip.progress import ProgressCallback, silent


@dataclass(frozen=True)
class Scores:
    """Per record, in the order of the records; NaN for records that were not scored."""

    exact_match: Tensor
    """(n,) fp64, 1 where greedy decoding gives the answer and then ends the turn."""
    answer_probability: Tensor
    """(n,) fp64, length-normalized: exp of the mean log-probability of the answer's tokens."""


def score(vlm: VLM, batches: Batches, count: int, on_batch: Callable[[int], None]) -> Scores:
    """Score `batches`, which hold some of `count` records; `on_batch` is told how many have been done.

    One pass with the answer given does for both: greedy decoding reproduces an answer exactly when, given its
    beginning, each of its tokens is the most probable one.
    """
    exact = torch.full((count,), torch.nan, dtype=torch.float64)
    probability = exact.clone()

    def compute(batch: Batch) -> None:
        records, hit, logs = _answers(vlm, batch)
        asked, row, length = torch.unique(records, return_inverse=True, return_counts=True)
        none = torch.zeros(len(asked), dtype=torch.float64)
        exact[asked] = (none.index_add(0, row, hit) == length).double()
        probability[asked] = (none.index_add(0, row, logs) / length).exp()
        on_batch(len(asked))

    batches.run(compute)
    return Scores(_merged(exact, batches.distributed), _merged(probability, batches.distributed))


def score_records(
    vlm: VLM,
    records: Sequence[Record],
    size: BatchSize | None = None,
    progress: ProgressCallback = silent,
    what: str = "asking",
    distributed: DistributedContext | None = None,
) -> Scores:
    """What the model answers to every record."""
    batches = vlm.batches(records, size=size, distributed=distributed)
    with progress(what, len(batches)) as advance:
        return score(vlm, batches, len(records), advance)


def _merged(values: Tensor, distributed: DistributedContext) -> Tensor:
    """What any process has scored."""
    scored, total = (~values.isnan()).double(), values.nan_to_num()
    distributed.all_reduce_(scored, total)
    return torch.where(scored > 0, total, torch.nan)


def answer_logits(vlm: VLM, batch: Batch, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the model says at each token of an answer, of all answers in `batch`.

    Args:
        states: (B, T, d), the text model's last.

    Returns:
        (n,) int64: the record the token belongs to; (n, vocabulary) fp32: the logits that predict it; (n,) int64: its
        vocabulary id. All where the head is.
    """
    rows, columns = batch.answer.nonzero(as_tuple=True)
    logits = _capped(vlm, vlm.model.lm_head(states[rows, columns - 1]).float())
    owners = batch.owner(batch.segments[rows, columns]).to(logits.device)
    return owners, logits, batch.inputs["input_ids"][rows, columns].to(logits.device)


@torch.no_grad()
def _answers(vlm: VLM, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """For each token of an answer: its record, whether it is the most probable one, and its log-probability."""
    records, logits, wanted = answer_logits(vlm, batch, vlm.hidden_states(batch))
    logs = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
    hit = logits.argmax(-1) == wanted
    return records.cpu(), hit.cpu().double(), logs.cpu().double()


def _capped(vlm: VLM, logits: Tensor) -> Tensor:
    """As Gemma 2, and with it PaliGemma 2, keeps logits within bounds behind the head."""
    cap = vlm.logit_softcapping
    return logits if cap is None else cap * torch.tanh(logits / cap)
