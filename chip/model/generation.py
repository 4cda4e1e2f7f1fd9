"""What a model says when it is asked: greedily, or drawn at some temperature."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation.utils import ALL_CACHE_NAMES

from chip.data.record import Record
from chip.errors import ChipWarning, RunError
from chip.kernels.gram import accumulation_dtype
from chip.model.batching.batch_size import out_of_memory
from chip.model.batching.batches import group_by_image_size
from chip.model.disk_cache import DiskCache
from chip.model.loading import VLM
from chip.model.lockstep import run_in_lockstep
from chip.model.running import running
from chip.model.weight_stream import WeightStream

ROWS = 64
"""Questions that are answered at once."""
MORE_TOKENS = 8
"""An answer is cut off when it is so much longer than the right one: it cannot be right any more."""
_CACHE: str = ALL_CACHE_NAMES[0]
"""What `generate` calls its cache: `past_key_values`, and `cache` in later versions, which warn at the old name."""


def answer_greedily(
    vlm: VLM,
    records: Sequence[Record],
    rows: int = ROWS,
    on_batch: Callable[[int], None] = lambda _: None,
    longest: int | None = None,
) -> list[str]:
    """The most probable answer to each record's question, token by token, without special tokens.

    Args:
        longest: tokens after which an answer is cut off; by default a few more than the right one has.

    Raises:
        InputError: an image cannot be read.
        RunError: a single question does not fit into memory.
    """
    return _decode(vlm, _answer(vlm, records, list(range(len(records))), None, rows, on_batch, longest))


@dataclass(frozen=True)
class OpenAnswer:
    """An answer of which nobody says how long it is to be."""

    text: str
    """Without special tokens."""
    ended: bool
    """Whether it came to an end by itself."""


def answer_openly(vlm: VLM, records: Sequence[Record], longest: int, rows: int = ROWS) -> list[OpenAnswer]:
    """The most probable answer to each record's question, cut off after `longest` tokens.

    Raises: as `answer_greedily`.
    """
    ends = _end_tokens(vlm, records, vlm.model.generation_config.eos_token_id)
    answers = _answer(vlm, records, list(range(len(records))), None, rows, lambda _: None, longest)
    pairs = zip(_decode(vlm, answers), answers, strict=True)
    return [OpenAnswer(text, not ends.isdisjoint(tokens)) for text, tokens in pairs]


def draw_answers(
    vlm: VLM,
    records: Sequence[Record],
    k: int,
    seed: int,
    rows: int = ROWS,
    on_batch: Callable[[int], None] = lambda _: None,
    longest: int | None = None,
    temperature: float = 1.0,
) -> list[list[str]]:
    """k answers to each record's question, drawn from the whole vocabulary.

    The chance of each token is fixed by the seed, the record's index, the number of the draw and the token's place: the
    batch it is in plays no part.

    Raises: as `answer_greedily`.
    """
    most = max((prompt.answer for prompt in vlm.prompts.read(records)), default=0) + MORE_TOKENS
    pairs = [(index, number) for index in range(len(records)) for number in range(k)]
    chances = np.array([np.random.default_rng([seed, *pair]).random(longest or most) for pair in pairs])
    drawn = Chances(torch.from_numpy(chances), temperature)
    answers = _decode(vlm, _answer(vlm, records, [index for index, _ in pairs], drawn, rows, on_batch, longest))
    return [answers[start : start + k] for start in range(0, len(answers), k)]


@dataclass(frozen=True)
class Chances:
    """By what answers are drawn."""

    numbers: Tensor
    """(rows, steps) fp64 in [0, 1), one for each token to come."""
    temperature: float = 1.0

    def __getitem__(self, rows: slice | list[int]) -> Chances:
        return Chances(self.numbers[rows], self.temperature)


@dataclass(frozen=True)
class _Ending:
    """When an answer ends."""

    longest: int | None
    """Tokens after which it is cut off; None: a few more than the right one has."""
    configured: int | Sequence[int] | None
    """The checkpoint's own tokens at the end of a text."""


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves of each row the one token that its number in [0, 1) falls on, tokens laid side by side by probability."""

    def __init__(self, chances: Tensor, prompt: int, temperature: float = 1.0) -> None:
        """
        Args:
            chances: (B, steps) fp64, one for each token to come.
            prompt: length of the rows as they are now.
        """
        self._chances, self._prompt, self._temperature = chances, prompt, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, vocabulary): 0 at the token drawn, −∞ elsewhere."""
        edges = (scores.to(accumulation_dtype(scores.device)) / self._temperature).softmax(-1).cumsum(-1)
        chance = self._chances[:, input_ids.shape[1] - self._prompt, None].to(edges) * edges[:, -1:]
        token = torch.searchsorted(edges, chance, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def _answer(
    vlm: VLM,
    records: Sequence[Record],
    indices: Sequence[int],
    chances: Chances | None,
    rows: int,
    on_batch: Callable[[int], None],
    longest: int | None,
) -> list[list[int]]:
    """An answer to each of the records at `indices`, by greedy decoding where there are no `chances`, one row each."""
    answers: list[list[int]] = [[]] * len(indices)
    ending = _Ending(longest, vlm.model.generation_config.eos_token_id)

    def answer(batch: list[int]) -> None:
        questions = [records[indices[i]] for i in batch]
        tokens = _generate_in_halves(vlm, questions, None if chances is None else chances[batch], ending)
        for i, of_one in zip(batch, tokens, strict=True):
            answers[i] = of_one
        on_batch(len(batch))

    runs = [partial(answer, batch) for batch in _batches(vlm, records, indices, rows)]
    if isinstance(vlm.stream, WeightStream) and runs:
        message = f"{len(indices)} answers are generated, and all streamed weights are read anew for each token's place"
        warnings.warn(f"{message}: this takes long", ChipWarning, stacklevel=3)
    with _without_defaults(vlm.model):
        if isinstance(vlm.stream, WeightStream):
            run_in_lockstep(vlm.stream, runs)
        else:
            for run in runs:
                run()
    return answers


def _decode(vlm: VLM, answers: Sequence[Sequence[int]]) -> list[str]:
    return [text.strip() for text in vlm.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)]


def _batches(vlm: VLM, records: Sequence[Record], indices: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Positions in `indices`: with an image or without, in some families of one size, and of similar length."""
    prompts = vlm.prompts.read(records)
    for group in group_by_image_size(vlm, [records[index] for index in indices]):
        group.sort(key=lambda place: len(prompts[indices[place]].tokens))
        yield from (group[start : start + rows] for start in range(0, len(group), rows))


def _generate_in_halves(
    vlm: VLM, records: Sequence[Record], chances: Chances | None, ending: _Ending
) -> list[list[int]]:
    """As `_generate`; what does not fit into memory, in halves."""
    try:
        return _generate(vlm, records, chances, ending)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if len(records) == 1:
            raise RunError(
                f"{records[0].where}: not even this question fits into the memory of {vlm.device}"
            ) from error
    middle = len(records) // 2
    first, second = (None, None) if chances is None else (chances[slice(middle)], chances[slice(middle, None)])
    halves = (records[:middle], first), (records[middle:], second)
    return [answer for part, drawn in halves for answer in _generate_in_halves(vlm, part, drawn, ending)]


@torch.no_grad()
def _generate(vlm: VLM, records: Sequence[Record], chances: Chances | None, ending: _Ending) -> list[list[int]]:
    """The tokens of each answer, cut off as `ending` says."""
    most = [ending.longest or prompt.answer + MORE_TOKENS for prompt in vlm.prompts.read(records)]
    inputs: dict[str, Any] = {name: value.to(vlm.device) for name, value in questions(vlm, records).items()}
    width = inputs["input_ids"].shape[1]
    config = _config(vlm, records, max(most), ending)
    draw = None if chances is None else [Draw(chances.numbers, width, chances.temperature)]
    if vlm.weights.streamed:  # several batches are under way at once
        inputs[_CACHE] = DiskCache(config=vlm.model.config.get_text_config(decoder=True))
    with running(vlm.model):
        tokens = vlm.model.generate(**inputs, generation_config=config, logits_processor=draw)
    return [row[width : width + length] for row, length in zip(tokens.tolist(), most, strict=True)]


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """The checkpoint's own settings would fill what `_config` leaves open, as with tokens to suppress or to force."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _config(vlm: VLM, records: Sequence[Record], longest: int, ending: _Ending) -> GenerationConfig:
    """Plain decoding: a checkpoint's own settings may hold penalties and temperatures, which are for chats."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=longest,
        eos_token_id=sorted(_end_tokens(vlm, records, ending.configured)),
        pad_token_id=vlm.prompts.pad,
    )


def _end_tokens(vlm: VLM, records: Sequence[Record], ends: int | Sequence[int] | None) -> set[int]:
    """What ends an answer: as configured, as the tokenizer has it, and as the chat format of the records does."""
    configured = [ends] if isinstance(ends, int) else ends or ()
    last = (prompt.tokens[-1] for prompt in vlm.prompts.read(records) if prompt.answer)
    return {token for token in (vlm.processor.tokenizer.eos_token_id, *configured, *last) if token is not None}


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
