"""Questions and answers in a model's chat format, as tokens and as what the model takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from chip.data.record import FREE_TEXT, SYSTEM, Record, Turn
from chip.errors import InputError, foreign_code
from chip.model.chat_template import render, says_alone, says_letters_of, usable_chat_template
from chip.model.conversation import chat_messages, said_before, words_come_first
from chip.model.decoded_images import DecodedImages

T = TypeVar("T")

_MODALITY_TOKENS = ("image_token", "video_token", "audio_token", "boi_token", "boa_token")
"""Attributes of processors and tokenizers: what stands in a text for something else than text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question and its answer as tokens; an image counts as the one token that stands for it in the text."""

    tokens: tuple[int, ...]
    answer: int
    """How many of the tokens, at the end, are the answer and what ends the turn."""
    prefix: int = 0
    """How many of them, at the beginning, stand before any question, in a prompt without an image."""
    images: int = 0
    """How many images stand in it."""
    words_first: int | None = None
    """Where the first question begins, if words of it stand before the first image."""


class Prompts:
    """Puts questions and answers into a model's chat format.

    Without a chat template (PaliGemma) the processor itself puts image and question before the answer, its suffix:
    tokens of the prompt see each other in both directions there, those of the answer what is before them.
    """

    def __init__(self, processor: Any, answer_is_suffix: bool = False) -> None:
        """
        Args:
            answer_is_suffix: the family needs no chat template.

        Raises:
            InputError: there is no chat template that writes a question and its answer once each.
        """
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._template = usable_chat_template(processor, answer_is_suffix)
        self._has_suffix = self._template is None
        holders = (processor, self._tokenizer)
        self._special = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._not_text = {str(getattr(each, name, None) or "") for each in holders for name in _MODALITY_TOKENS} - {""}
        self._not_text |= self._written_tokens()
        self._end = self._end_of_turn()
        self._ends = {self._end, self._tokenizer.eos_token or ""} - {""}
        self._begin = self._beginning()
        self.images = DecodedImages()
        self._known: dict[tuple[object, ...], Prompt] = {}
        self._empty: dict[tuple[Turn, ...], list[int]] = {}
        """System prompt -> the tokens of a conversation that begins with it and asks next to nothing."""

    @property
    def causal(self) -> bool:
        """Whether no token sees what stands behind it, images apart: then questions can share what precedes them."""
        return not self._has_suffix

    @property
    def pad(self) -> int:
        """The token that fills up rows."""
        return int(self._tokenizer.pad_token_id or 0)

    def read(self, records: Sequence[Record]) -> list[Prompt]:
        """The tokens of each record; known ones are not tokenized again.

        Raises:
            InputError: a record holds a token that stands for an image, or is not whole in the chat format.
        """
        keys = [(r.question, r.answer, r.history, len(r.images), r.task == FREE_TEXT) for r in records]
        new = {key: record for key, record in zip(keys, records, strict=True) if key not in self._known}
        for free, tokenize in ((False, self._tokenize), (True, self._tokenize_free)):
            some = {key: record for key, record in new.items() if (record.task == FREE_TEXT) == free}
            if some:
                self._known.update(zip(some, _naming(list(some.values()), tokenize), strict=True))
        return [self._known[key] for key in keys]

    def inputs(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """The records as the model takes them, one a row, padded on the right.

        All are of one kind: with as many images, without one, or free text.

        Raises:
            InputError: an image cannot be read, or the processor does not take a record.
        """
        return _naming(records, self._inputs)

    def _inputs(self, records: Sequence[Record]) -> dict[str, Tensor]:
        if records[0].task == FREE_TEXT:
            return self._process_free([record.question for record in records])
        texts = [self._prompt(record) if self._has_suffix else self._full(record) for record in records]
        suffixes = [self._answer(record) for record in records] if self._has_suffix else None
        return self._process(texts, self._images(records), suffixes)

    def question(self, record: Record) -> dict[str, Tensor]:
        """The record without its answer, as the model's `generate` takes it.

        Raises:
            InputError: as `inputs`.
        """
        return _naming([record], lambda asked: self._process([self._prompt(record)], self._images(asked), None))

    def _images(self, records: Sequence[Record]) -> list[list[Any]] | None:
        """Decoded images, those of a record in a list; None for text-only rows."""
        return None if records[0].image is None else [self.images.open(record) for record in records]

    def _render(self, record: Record, answer: str | None = None) -> str:
        messages = chat_messages(record)
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        assert self._template is not None
        return render(self._processor, self._template, messages, answer is None, record.where)

    def _written_tokens(self) -> set[str]:
        """The special tokens that begin and end a text, and those that the chat format itself writes. Others may belong
        to what is asked and said, as Qwen's around a box."""
        own = {str(getattr(self._tokenizer, f"{name}_token")) for name in ("bos", "eos", "pad")}
        own = {token for token in own & self._special if len(token) > 1}  # some pad with a plain sign
        if self._has_suffix:
            return own
        probe = self._render(Record("question", "", (), b"a picture"), answer="answer")
        return own | {token for token in self._special if len(token) > 1 and token in probe}

    def _end_of_turn(self) -> str:
        """The special token that the chat format puts behind an answer; else end of text; empty where there is none."""
        if not self._has_suffix:
            probe = self._render(Record("question", "", (), None), answer="answer")
            tail = probe[probe.rindex("answer") + len("answer") :].strip()
            if special := [token for token in self._special if tail.startswith(token)]:
                return str(max(special, key=len))
        return str(self._tokenizer.eos_token or "")

    def _prompt(self, record: Record) -> str:
        """What stands before the answer."""
        if not self._has_suffix:
            return self._render(record)
        if record.history or record.has_placeholders:
            told = "images within the question" if record.has_placeholders else "earlier turns or a system prompt"
            raise InputError(
                f"{record.where}: the record has {told}, and the model has no chat format for them; drop it"
            )
        if record.image is not None:
            return f"{self._processor.image_token * len(record.images)}{record.question}"
        return f"{self._tokenizer.bos_token}{record.question}\n"  # as the processor, which wants an image, would

    def _answer(self, record: Record) -> str:
        """Without what ends the turn, which is written behind it in any case.

        Raises:
            InputError: nothing else is there, or the turn ends in the middle of it.
        """
        answer = record.answer.strip()
        while end := next((end for end in self._ends if answer.endswith(end)), None):
            answer = answer.removesuffix(end).rstrip()
        if not answer:
            raise InputError(f"{record.where}: the answer is {record.answer.strip()!r} alone; add what is to be said")
        if end := next((end for end in self._ends if end in answer), None):
            raise InputError(f"{record.where}: the answer goes on behind {end}, which ends a turn; take that out")
        return answer

    def _full(self, record: Record) -> str:
        """Prompt, answer and end of turn, as the template writes a whole conversation."""
        return f"{self._render(record, self._answer(record)).rstrip().removesuffix(self._end)}{self._end}"

    def _check(self, record: Record, prompt: str, whole: str) -> None:
        """Raise `InputError` unless what was asked and said before stands in the prompt, and what follows it in the
        whole says the answer and nothing else."""
        said, answer = said_before(record), self._answer(record)
        for text, what in (*said, (answer, "answer")):
            if token := next((token for token in self._not_text if token in text), None):
                raise InputError(f"{record.where}: the {what} holds {token}, which stands for no text; take it out")
        rest = whole[common_start(prompt, whole) :]
        there = [(what, text.strip() in prompt) for text, what in said]
        for what, as_it_is in (*there, ("answer", says_alone(rest, answer, self._special_text))):
            if not as_it_is:
                raise InputError(
                    f"{record.where}: the {what} is not as it is in the model's chat format; "
                    "look for what the chat template drops, changes or adds"
                )

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

    def _process_free(self, texts: list[str]) -> dict[str, Tensor]:
        """Texts as the tokenizer itself begins them."""
        padding = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        if self._has_suffix:  # its processor wants an image
            return dict(self._tokenizer(texts, return_token_type_ids=True, **padding))
        return dict(self._processor(text=texts, images=None, **padding))

    def _beginning(self) -> dict[str, Any]:
        """Keeps the tokenizer from writing a beginning-of-text token where the chat template has written one."""
        token = self._tokenizer.bos_token
        written = token and not self._has_suffix and self._render(Record("question", "", (), None)).startswith(token)
        return {"add_special_tokens": False} if written else {}

    def _tokens(self, texts: list[str], **options: Any) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, **options)["input_ids"]
        return ids

    def _tokenize_free(self, records: Sequence[Record]) -> list[Prompt]:
        return [Prompt(tuple(ids), 0) for ids in self._tokens([record.question for record in records])]

    def _tokenize(self, records: Sequence[Record]) -> list[Prompt]:
        """The answer is what follows the longest common beginning of the prompt alone and the prompt with its answer,
        and not the answer tokenized alone, because a tokenizer may merge across the border. A suffix is tokenized
        alone.
        """
        texts = [self._prompt(record) for record in records]
        if self._has_suffix:
            answers = [f"{self._answer(record)}{self._end}" for record in records]
            full = [f"{text}{answer}" for text, answer in zip(texts, answers, strict=True)]
        else:
            full = [self._full(record) for record in records]
        for record, text, whole in zip(records, texts, full, strict=True):
            self._check(record, text, whole)
        prompts = self._tokens(texts, **self._begin)
        if self._has_suffix:
            ends = self._tokens(answers, add_special_tokens=False)
            parts = zip(records, prompts, ends, strict=True)
            made = [Prompt((*prompt, *end), len(end), images=len(r.images)) for r, prompt, end in parts]
        else:
            wholes = self._tokens(full, **self._begin)
            made = [self._divided(*parts) for parts in zip(records, prompts, wholes, strict=True)]
        self._check_answers(records, made)
        return made

    def _check_answers(self, records: Sequence[Record], prompts: Sequence[Prompt]) -> None:
        """Raise `InputError` for an answer of which the tokenizer drops something, or knows it not."""
        answers = [prompt.tokens[len(prompt.tokens) - prompt.answer :] for prompt in prompts]
        for record, text in zip(records, self._tokenizer.batch_decode(answers), strict=True):
            if not says_letters_of(text, self._answer(record)):
                what = "the checkpoint's tokenizer drops or changes a part of the answer"
                raise InputError(f"{record.where}: {what}; look for what it does not know, or normalizes away")

    def _divided(self, record: Record, prompt: Sequence[int], whole: Sequence[int]) -> Prompt:
        """The tokens of prompt and answer, and of the prompt alone, as a `Prompt`."""
        start = 0
        if record.image is None or words_come_first(record):
            system = record.history[:1] if record.history and record.history[0].role == SYSTEM else ()
            if system not in self._empty:
                text = self._render(Record("§", "", (), None, history=system))
                (self._empty[system],) = self._tokens([text], **self._begin)
            start = common_start(whole, self._empty[system])
        return Prompt(
            tuple(whole),
            len(whole) - common_start(prompt, whole),
            start if record.image is None else 0,
            len(record.images),
            None if record.image is None or not start else start,
        )


def _naming(records: Sequence[Record], process: Callable[[Sequence[Record]], T]) -> T:
    """What `process` makes of the records. What a processor raises becomes an `InputError` that names the record."""
    try:
        with foreign_code(
            records[0].where or "the text to begin with",
            "the checkpoint's processor does not take it",
            "look at its image and text, and at the checkpoint's files of the processor and tokenizer",
        ):
            return process(records)
    except InputError:
        if len(records) > 1:
            for record in records:
                _naming([record], process)
        raise


def common_start(a: Sequence[object], b: Sequence[object]) -> int:
    """How many tokens, or characters, the two begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
