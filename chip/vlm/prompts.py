"""From records to model inputs, and back: which tokens are image, which are the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from chip.errors import InputError
from chip.records import Record, open_image

DECODED_IMAGES = 128  # kept for the next question about them
DEFAULT_BATCH_SIZE = 64  # records; long enough rows for a CPU, short enough for one accelerator


@dataclass(frozen=True)
class Batch:
    """Some records as the model takes them; every row is one record, padded on the right."""

    records: Tensor
    """(B,) int64: which records, as indices into the list they were taken from."""
    inputs: Mapping[str, Tensor]
    """Keyword arguments of the model's forward."""
    real: Tensor
    """(B, T) bool: no padding."""
    vision: Tensor
    """(B, T) bool: tokens that stand for a piece of the image."""
    answer: Tensor
    """(B, T) bool: the answer and the token that ends the turn."""

    @property
    def keys(self) -> Tensor:
        """(B, T) int64: the vocabulary id; −1 − its index in the record's image for a piece of the image."""
        return torch.where(self.vision, -self.vision.cumsum(1), self.inputs["input_ids"])

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.records.to(device),
            {name: value.to(device) for name, value in self.inputs.items()},
            self.real.to(device),
            self.vision.to(device),
            self.answer.to(device),
        )


class Prompts:
    """Puts questions and answers into a model's chat format.

    With `by_size`, all images of a batch have the same width and height.
    Without a chat template (PaliGemma) the processor itself puts image and question before the answer, its suffix:
    tokens of the prompt see each other in both directions there, those of the answer what is before them.
    """

    def __init__(self, processor: Any, image_token_id: int, max_tokens: int, by_size: bool = False) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._image_token_id = image_token_id
        self._max_tokens = max_tokens
        self._by_size = by_size
        self._has_suffix = processor.chat_template is None
        self._end = self._end_of_turn()
        self._begin = self._beginning()
        self._open = lru_cache(maxsize=DECODED_IMAGES)(open_image)

    def batches(
        self, records: Sequence[Record], indices: Sequence[int], batch_size: int | None = None
    ) -> Iterator[Batch]:
        """All `indices` once, in batches of like lengths; what a batch holds never changes what is computed.

        Raises:
            InputError: an image cannot be read, or a record does not fit into the model's context.
        """
        if not indices:
            return
        lengths, answers = self._lengths([records[i] for i in indices])
        shapes = [self._shape(records[i]) for i in indices]
        order = sorted(range(len(indices)), key=lambda k: (shapes[k], lengths[k], k))
        for _, alike in groupby(order, key=lambda k: shapes[k]):
            for chosen in _cut(list(alike), batch_size or DEFAULT_BATCH_SIZE):
                yield self._batch(records, [indices[k] for k in chosen], [answers[k] for k in chosen])

    def question(self, record: Record) -> dict[str, Tensor]:
        """The record without its answer, as the model's `generate` takes it."""
        return self._process([self._prompt(record)], self._images([record]), None)

    def _shape(self, record: Record) -> tuple[int, ...]:
        """Records of one shape can stand in one batch; text-only ones come last."""
        if record.image is None:
            return (1,)
        return (0, *self._image(record).size) if self._by_size else (0,)

    def _images(self, rows: Sequence[Record]) -> list[list[Any]] | None:
        """Decoded images, one a row; None for text-only rows."""
        return None if rows[0].image is None else [[self._image(row)] for row in rows]

    def _image(self, record: Record) -> Any:
        """Decoded once for all its questions: what tells them apart is not part of the key."""
        return self._open(replace(record, question="", answer="", path=(), task="", split=""))

    def _render(self, record: Record, answer: str | None = None) -> str:
        image = [] if record.image is None else [{"type": "image"}]
        messages = [{"role": "user", "content": [*image, {"type": "text", "text": record.question}]}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        # The processor's own method does the same, and in some families wants a video processor for it.
        rendered = self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._processor.chat_template,
            add_generation_prompt=answer is None,
            tokenize=False,
        )
        return str(rendered)

    def _end_of_turn(self) -> str:
        """The special token that the chat format puts behind an answer, where it has one; else end of text."""
        if not self._has_suffix:
            probe = self._render(Record("question", "", (), None), answer="answer")
            tail = probe[probe.rindex("answer") + len("answer") :].strip()
            known = [token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special]
            special = [token for token in known if tail.startswith(token)]
            if special:
                return str(max(special, key=len))
        return str(self._tokenizer.eos_token)

    def _prompt(self, record: Record) -> str:
        """What stands before the answer."""
        if not self._has_suffix:
            return self._render(record)
        if record.image is not None:
            return f"{self._processor.image_token}{record.question}"
        return f"{self._tokenizer.bos_token}{record.question}\n"  # as the processor, which wants an image, would

    def _full(self, record: Record) -> str:
        """Prompt, answer and end of turn, as the template writes a whole conversation."""
        return f"{self._render(record, record.answer.strip()).rstrip().removesuffix(self._end)}{self._end}"

    def _process(
        self, texts: list[str], images: list[list[Any]] | None, suffixes: list[str] | None
    ) -> dict[str, Tensor]:
        padding = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        if self._has_suffix and images is None:
            ends = None if suffixes is None else [f"{suffix}{self._end}" for suffix in suffixes]
            return dict(self._tokenizer(texts, text_pair=ends, return_token_type_ids=True, **padding))
        options = self._begin if suffixes is None else {"suffix": suffixes}
        inputs = dict(self._processor(text=texts, images=images, **options, **padding))
        inputs.pop("labels", None)  # for training
        return inputs

    def _beginning(self) -> dict[str, Any]:
        """Keeps the tokenizer from writing a beginning-of-text token where the chat template has written one."""
        token = self._tokenizer.bos_token
        written = token and not self._has_suffix and self._render(Record("question", "", (), None)).startswith(token)
        return {"add_special_tokens": False} if written else {}

    def _tokens(self, texts: list[str], **options: Any) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, **options)["input_ids"]
        return ids

    def _lengths(self, records: Sequence[Record]) -> tuple[list[int], list[int]]:
        """Tokens of each record's text, and of its answer with the end of the turn.

        The answer is what follows the longest common beginning of the prompt alone and the prompt with its answer, and
        not the answer tokenised alone, because a tokenizer may merge across the border. A suffix is tokenised alone.
        """
        prompts = self._tokens([self._prompt(record) for record in records], **self._begin)
        if self._has_suffix:
            ends = self._tokens([f"{record.answer.strip()}{self._end}" for record in records], add_special_tokens=False)
            answers = [len(end) for end in ends]
            return [len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)], answers
        lengths, answers = [], []
        wholes = self._tokens([self._full(record) for record in records], **self._begin)
        for prompt, whole in zip(prompts, wholes, strict=True):
            common = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
            lengths.append(len(whole))
            answers.append(len(whole) - common)
        return lengths, answers

    def _batch(self, records: Sequence[Record], chosen: Sequence[int], answers: Sequence[int]) -> Batch:
        rows = [records[i] for i in chosen]
        texts = [self._prompt(record) if self._has_suffix else self._full(record) for record in rows]
        suffixes = [record.answer.strip() for record in rows] if self._has_suffix else None
        inputs = self._process(texts, self._images(rows), suffixes)
        real = inputs["attention_mask"].bool()
        length = real.sum(1)
        for record, tokens in zip(rows, length.tolist(), strict=True):
            if tokens > self._max_tokens:
                raise InputError(
                    f"{record.where}: {tokens} tokens with its image, the model takes {self._max_tokens}; "
                    "shorten the question or answer, or scale the image down"
                )
        position = torch.arange(real.shape[1])[None]
        start = length - torch.tensor(answers)
        return Batch(
            records=torch.tensor(chosen),
            inputs=inputs,
            real=real,
            vision=inputs["input_ids"] == self._image_token_id,
            answer=(position >= start[:, None]) & real,
        )


def _cut(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive pieces of `size`; the last may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
