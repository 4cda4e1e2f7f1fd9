"""What a model answers: exact match and answer probability of each record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from chip.vlm.loading import VLM
from chip.vlm.prompts import Batch


@dataclass(frozen=True)
class Scores:
    """Per record, in the order of the records; NaN for records that were not scored."""

    exact_match: Tensor
    """(n,) fp64, 1 where greedy decoding gives the answer and then ends the turn."""
    answer_probability: Tensor
    """(n,) fp64, length-normalised: exp of the mean log-probability of the answer's tokens."""


@torch.no_grad()
def score(vlm: VLM, batches: Iterable[Batch], count: int, on_batch: Callable[[int], None]) -> Scores:
    """Score `batches`, which hold some of `count` records; `on_batch` is told how many have been done.

    One pass with the answer given does for both: greedy decoding reproduces an answer exactly when, given its
    beginning, each of its tokens is the most probable one.
    """
    exact = torch.full((count,), torch.nan, dtype=torch.float64)
    probability = exact.clone()
    for batch in batches:
        batch = batch.to(vlm.device)
        hidden = vlm.core(**batch.inputs, use_cache=False).last_hidden_state  # (B, T, d)
        rows, columns = batch.answer.nonzero(as_tuple=True)
        logits = _capped(vlm, vlm.model.lm_head(hidden[rows, columns - 1]).float())  # (answer tokens, vocabulary)
        wanted = batch.inputs["input_ids"][rows, columns]
        logs = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0].double().cpu()
        hit = (logits.argmax(-1) == wanted).double().cpu()
        rows, records = rows.cpu(), batch.records.cpu()
        length = torch.zeros(len(records), dtype=torch.float64).index_add_(0, rows, torch.ones_like(hit))
        exact[records] = (torch.zeros_like(length).index_add_(0, rows, hit) == length).double()
        probability[records] = (torch.zeros_like(length).index_add_(0, rows, logs) / length).exp()
        on_batch(len(records))
    return Scores(exact, probability)


def _capped(vlm: VLM, logits: Tensor) -> Tensor:
    """As Gemma 2, and with it PaliGemma 2, keeps logits within bounds behind the head."""
    cap = getattr(vlm.model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
