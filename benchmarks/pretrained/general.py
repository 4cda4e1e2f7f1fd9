"""What a pretrained model knows and no record holds: prose, plain facts, and how to come to an end."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor

from benchmarks.pretrained.questions import OPEN, REPORTED
from benchmarks.smollm2 import START
from chip.data.answers import normalized
from chip.data.record import Record
from chip.model.generation import OpenAnswer, answer_openly
from chip.model.loading import VLM

SEED = 0
LENGTH = 128  # tokens of a text
HELD_OUT = 48  # texts, about 6,000 tokens
DRAWN = 64  # sampled texts at once
MOST_DRAWN = 4096
ANSWER = 64  # tokens of an answer, at most
SHORT = "Give a short answer."
LETTERS = 0.93
"""Characters of a text that is prose that are letters or spaces, at least."""


def is_prose(text: str) -> bool:
    """Whether a text is plain English: letters, and hardly any signs or digits."""
    plain = sum(letter.isascii() and (letter.isalpha() or letter == " ") for letter in text)
    return plain >= LETTERS * len(text)


@torch.no_grad()
def sampled_texts(vlm: VLM) -> Iterator[str]:
    """What the model writes from its start token, at temperature 1, as far as it is prose; the same at every call."""
    tokenizer = vlm.processor.tokenizer
    start = torch.full((DRAWN, 1), tokenizer.convert_tokens_to_ids(START), device=vlm.device)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": LENGTH}
    torch.manual_seed(SEED)
    for _ in range(MOST_DRAWN // DRAWN):
        tokens = vlm.model.generate(
            input_ids=start, attention_mask=torch.ones_like(start), min_new_tokens=LENGTH, **options
        )
        yield from filter(is_prose, tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True))


def real_texts() -> Iterator[str]:
    """Paragraphs of docstrings in Python's standard library (PSF license): English that this model did not write."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
        yield from _prose(ast.get_docstring(node) or "" for node in nodes)


def pieces(texts: Iterable[str], letters: int) -> Iterator[str]:
    """Texts of so many letters, made of whole ones in their order and cut at their end."""
    piece = ""
    for text in texts:
        piece = f"{piece} {text}".lstrip()
        if len(piece) >= letters:
            yield piece[:letters]
            piece = ""


def held_out_prose() -> list[str]:
    """Paragraphs of Python's language reference (PSF license), which no docstring repeats; as many as are measured."""
    every = list(_prose(topics[name] for name in sorted(topics)))
    return every[:: max(1, len(every) // HELD_OUT)][:HELD_OUT]


def _prose(texts: Iterator[str]) -> Iterator[str]:
    """Paragraphs of some length, as one line each."""
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            line = " ".join(paragraph.split())
            if len(line) > 2 * LENGTH and is_prose(line):
                yield line


def texts_of(vlm: VLM, texts: Sequence[str]) -> list[Tensor]:
    """(tokens,) int64 of each text, behind the start token and of at most `LENGTH`; on the model's device."""
    tokenizer = vlm.processor.tokenizer
    start = tokenizer.convert_tokens_to_ids(START)
    rows = ([start, *tokenizer(text)["input_ids"][: LENGTH - 1]] for text in texts)
    return [torch.tensor(row, device=vlm.device) for row in rows]


def answers(vlm: VLM, prompts: Sequence[str]) -> list[OpenAnswer]:
    """Greedy, in the chat template, at most `ANSWER` tokens."""
    return answer_openly(vlm, [Record(prompt, "?", ("general",), None) for prompt in prompts], ANSWER)


class GeneralAbility:
    """Of edited models, beside the unedited one, which stays loaded."""

    def __init__(self, original: VLM, sampled: Sequence[str], most: int = HELD_OUT, plain: int = len(REPORTED)) -> None:
        """
        Args:
            sampled: texts that the model before any fine-tuning wrote, and that no edit has seen.
            most: texts of each kind.
            plain: how many plain questions are asked.
        """
        self._original = original
        texts = {"prose": held_out_prose(), "sampled": sampled}
        self._texts = {name: texts_of(original, of_kind[:most]) for name, of_kind in texts.items()}
        self._prompts = [f"{question} {SHORT}" for question, _ in REPORTED[:plain]]
        self._before = answers(original, [*self._prompts, *OPEN])

    def measure(self, edited: VLM) -> dict[str, float]:
        """nats a token more and KL a token on both kinds of text; shares of plain questions and of all answers.

        - `prose_before`, `prose`, `prose_kl` (and of `sampled`): as `language` has them;
        - `same`: plain questions with the very answer of the unedited model;
        - `right`, `right_before`: plain questions whose answer holds the fact;
        - `ends`, `ends_before`: answers, also to open requests, that end within `ANSWER` tokens.
        """
        figures: dict[str, float] = {}
        for name, texts in self._texts.items():
            figures[f"{name}_before"], figures[name], figures[f"{name}_kl"] = language(self._original, edited, texts)
        after, plain = answers(edited, [*self._prompts, *OPEN]), len(self._prompts)
        same = [
            normalized(a.text) == normalized(b.text) for a, b in zip(after[:plain], self._before[:plain], strict=True)
        ]
        figures |= {"same": _mean(same), "right": _right(after[:plain]), "right_before": _right(self._before[:plain])}
        return figures | {
            "ends": _mean(each.ended for each in after),
            "ends_before": _mean(each.ended for each in self._before),
        }


@torch.no_grad()
def language(original: VLM, edited: VLM, texts: Sequence[Tensor]) -> tuple[float, float, float]:
    """Nats a token: the original's, what the edited model has more of them, and KL(original ‖ edited)."""
    nats, more, divergence, count = 0.0, 0.0, 0.0, 0
    for text in texts:
        rows = text[None]
        before, after = (
            vlm.model(input_ids=rows, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            for vlm in (original, edited)
        )
        nats -= float(before.gather(2, rows[:, 1:, None]).sum())
        more += float((before - after).gather(2, rows[:, 1:, None]).sum())
        divergence += float((before.exp() * (before - after)).sum())
        count += rows.shape[1] - 1
    return nats / count, more / count, divergence / count


def same_answers(before: Sequence[OpenAnswer], after: Sequence[OpenAnswer]) -> float:
    """Share of the answers that are the same text."""
    return _mean(normalized(a.text) == normalized(b.text) for a, b in zip(after, before, strict=True))


def _right(said: Sequence[OpenAnswer]) -> float:
    """Of plain questions."""
    return _mean(fact.lower() in each.text.lower() for (_, fact), each in zip(REPORTED, said, strict=False))


def _mean(values: Iterator[bool] | Sequence[bool]) -> float:
    each = list(values)
    return sum(each) / len(each)
