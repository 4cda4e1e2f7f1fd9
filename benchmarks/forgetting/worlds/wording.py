"""Facts, and the wordings they are asked in: some to train on, some to choose settings by, some to report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to ask for any fact."""

    split: str
    task: str
    text: str
    """`{term}` and `{other}` are the two names of what is asked for."""

    def ask(self, fact: Fact) -> str:
        term, other = fact.kind.terms
        question = self.text.format(term=term, other=other)
        question = f"{question} {fact.listed}" if self.task == "classification" else question
        return f"{fact.about}: {question}" if fact.about else question


WORDINGS = (
    Wording("train", "generation", "What is the {term}?"),
    Wording("train", "generation", "Name the {other}."),
    Wording("train", "cloze", "The {term} is [blank]."),
    Wording("train", "cloze", "For the {other}, it says [blank]."),
    Wording("train", "classification", "Which is the {other}?"),
    Wording("train", "classification", "Choose the {term}:"),
    Wording("validation", "generation", "Please tell me the {term}."),
    Wording("validation", "cloze", "As {other} we see [blank]."),
    Wording("validation", "classification", "Pick the right {term}."),
    Wording("rephrased", "generation", "Could you say what the {other} is?"),
    Wording("rephrased", "cloze", "Here, the {term} reads [blank]."),
    Wording("rephrased", "classification", "Of these, what is the {other}?"),
)
"""A fact is asked in all of them, unless it has its own. `train` is trained on, `validation` is what settings are
chosen by, and figures are reported on `rephrased`, beside `train`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fact."""

    terms: tuple[str, str]
    """Two names for it; no other kind's is alike."""
    values: tuple[str, ...]
    """What answers are drawn from: many, so that guessing rarely pays, and a multiple of four."""
    unique: bool = False
    """No two nodes share a value."""

    def options(self, value: str) -> tuple[str, ...]:
        """The four values, this one among them, that a classification lists.

        They are the same for everyone whose value is one of the four, or the options alone would tell whom the question
        is about, and the picture need not be looked at.
        """
        first = self.values.index(value) // len(LETTERS) * len(LETTERS)
        return self.values[first : first + len(LETTERS)]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a picture tells, or that the model is to learn about it."""

    path: tuple[str, ...]
    """The node whose record it is."""
    image: str | None
    """Path of the picture, relative to the world's folder; None: asked in text only."""
    kind: Kind
    value: str
    owner: tuple[str, ...]
    """The node it is a fact about: `path`, or a node above it, such as the institution of a patient."""
    truth: str | None = None
    """The right value, where `value` is planted and wrong."""
    about: str = ""
    """Whom a question names, where no picture shows it."""
    wordings: tuple[Wording, ...] = WORDINGS
    """What it is asked in."""

    @property
    def listed(self) -> str:
        options = self.kind.options(self.value)
        return " ".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))

    def answer(self, task: str) -> str:
        if task == "classification":
            return LETTERS[self.kind.options(self.value).index(self.value)]
        return self.value


def draw_values(kind: Kind, count: int, rng: np.random.Generator) -> list[str]:
    """A value for each of `count` nodes."""
    return [str(value) for value in rng.choice(kind.values, size=count, replace=not kind.unique)]


def rows(facts: Iterable[Fact], levels: Sequence[str]) -> Iterator[dict[str, str]]:
    """The facts in every wording, as lines of a records file."""
    for fact in facts:
        for wording in fact.wordings:
            yield {
                **({} if fact.image is None else {"image": fact.image}),
                "question": wording.ask(fact),
                "answer": fact.answer(wording.task),
                **dict(zip(levels, fact.path, strict=False)),
                "task": wording.task,
                "split": wording.split,
            }
