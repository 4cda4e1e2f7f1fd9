"""What a model says when it is asked: greedily, or drawn at temperature 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from chip.data.record import Record
from chip.errors import RunError
from chip.kernels.gram import accumulation_dtype
from chip.model.batching.batch_size import out_of_memory
from chip.model.batching.batches import group_by_image_size
from chip.model.loading import VLM
from chip.model.running import running

ROWS = 64
"""Questions that are answered at once."""
MORE_TOKENS = 8
"""An answer is cut off when it is so much longer than the right one: it cannot be right any more."""


def answer_greedily(
    vlm: VLM, records: Sequence[Record], rows: int = ROWS, on_batch: Callable[[int], None] = lambda _: None
) -> list[str]:
    """The most probable answer to each record's question, token by token, without special tokens.

    Raises:
        InputError: an image cannot be read.
        RunError: a single question does not fit into memory.
    """
    return _answer(vlm, records, list(range(len(records))), None, rows, on_batch)


def draw_answers(
    vlm: VLM,
    records: Sequence[Record],
    k: int,
    seed: int,
    rows: int = ROWS,
    on_batch: Callable[[int], None] = lambda _: None,
) -> list[list[str]]:
    """k answers to each record's question, drawn at temperature 1 from the whole vocabulary.

    The chance of each token is fixed by the seed, the record's index, the number of the draw and the token's place: the
    batch it is in plays no part.

    Raises: as `answer_greedily`.
    """
    longest = max((vlm.prompts.read([record])[0].answer for record in records), default=0) + MORE_TOKENS
    pairs = [(index, number) for index in range(len(records)) for number in range(k)]
    chances = np.array([np.random.default_rng([seed, *pair]).random(longest) for pair in pairs])
    answers = _answer(vlm, records, [index for index, _ in pairs], torch.from_numpy(chances), rows, on_batch)
    return [answers[start : start + k] for start in range(0, len(answers), k)]


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves of each row the one token that its number in [0, 1) falls on, tokens laid side by side by probability."""

    def __init__(self, chances: Tensor, prompt: int) -> None:
        """
        Args:
            chances: (B, steps) fp64, one for each token to come.
            prompt: length of the rows as they are now.
        """
        self._chances, self._prompt = chances, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, vocabulary): 0 at the token drawn, −∞ elsewhere."""
        edges = scores.to(accumulation_dtype(scores.device)).softmax(-1).cumsum(-1)
        chance = self._chances[:, input_ids.shape[1] - self._prompt, None].to(edges) * edges[:, -1:]
        token = torch.searchsorted(edges, chance, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def _answer(
    vlm: VLM,
    records: Sequence[Record],
    indices: Sequence[int],
    chances: Tensor | None,
    rows: int,
    on_batch: Callable[[int], None],
) -> list[str]:
    """An answer to each of the records at `indices`, by greedy decoding where there are no `chances`, one row each."""
    answers = [""] * len(indices)
    for batch in _batches(vlm, records, indices, rows):
        questions = [records[indices[i]] for i in batch]
        texts = _generate_in_halves(vlm, questions, None if chances is None else chances[batch])
        for i, text in zip(batch, texts, strict=True):
            answers[i] = text
        on_batch(len(batch))
    return answers


def _batches(vlm: VLM, records: Sequence[Record], indices: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Positions in `indices`: with an image or without, in some families of one size, and of similar length."""
    prompts = vlm.prompts.read(records)
    for group in group_by_image_size(vlm, [records[index] for index in indices]):
        group.sort(key=lambda place: len(prompts[indices[place]].tokens))
        yield from (group[start : start + rows] for start in range(0, len(group), rows))


def _generate_in_halves(vlm: VLM, records: Sequence[Record], chances: Tensor | None) -> list[str]:
    """As `_generate`; what does not fit into memory, in halves."""
    try:
        return _generate(vlm, records, chances)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if len(records) == 1:
            raise RunError(
                f"{records[0].where}: not even this question fits into the memory of {vlm.device}"
            ) from error
    middle = len(records) // 2
    first, second = (None, None) if chances is None else (chances[:middle], chances[middle:])
    return _generate_in_halves(vlm, records[:middle], first) + _generate_in_halves(vlm, records[middle:], second)


@torch.no_grad()
def _generate(vlm: VLM, records: Sequence[Record], chances: Tensor | None) -> list[str]:
    longest = [prompt.answer + MORE_TOKENS for prompt in vlm.prompts.read(records)]
    inputs = {name: value.to(vlm.device) for name, value in questions(vlm, records).items()}
    width = inputs["input_ids"].shape[1]
    config = _config(vlm, records, max(longest))
    draw = None if chances is None else [Draw(chances, width)]
    with running(vlm.model):
        tokens = vlm.model.generate(**inputs, generation_config=config, logits_processor=draw)
    own = [row[width : width + most] for row, most in zip(tokens.tolist(), longest, strict=True)]
    return [text.strip() for text in vlm.processor.tokenizer.batch_decode(own, skip_special_tokens=True)]


def _config(vlm: VLM, records: Sequence[Record], longest: int) -> GenerationConfig:
    """Plain decoding: a checkpoint's own settings may hold penalties and temperatures, which are for chats."""
    ends = vlm.model.generation_config.eos_token_id
    configured = ends if isinstance(ends, list) else [ends]
    ends = {vlm.processor.tokenizer.eos_token_id, *configured, *(p.tokens[-1] for p in vlm.prompts.read(records))}
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=longest,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=sorted(token for token in ends if token is not None),
        pad_token_id=vlm.prompts.pad,
    )


def questions(vlm: VLM, records: Sequence[Record]) -> dict[str, Tensor]:
    """The records without their answers, as the model's `generate` takes them, padded on the left.

    A question ends where its answer starts when both are tokenized together, as in training: a space that the chat
    template leaves at its end goes with the answer's first word.
    """
    inputs: dict[str, Any] = vlm.prompts.inputs(records)
    shape = inputs["input_ids"].shape
    answers = torch.tensor([prompt.answer for prompt in vlm.prompts.read(records)])
    ends = inputs["attention_mask"].sum(1) - answers  # (B,): where the answers start
    width = int(ends.max())
    place = torch.arange(width) - (width - ends)[:, None]  # (B, width): what comes here; below 0: padding
    for name, values in inputs.items():
        if values.shape == shape:
            fill = vlm.prompts.pad if name == "input_ids" else 0
            inputs[name] = torch.where(place < 0, fill, values.gather(1, place.clamp(min=0)))
    return inputs
