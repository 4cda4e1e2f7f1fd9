"""The methods by training: each is the loss it minimizes. They are here to be compared with.

What all share is an adaptation: their papers train text models of billions of parameters for some epochs at rates
around 1e-5; here are `FineTuning.steps` steps at the rates that a small model needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Self

from torch import Tensor

from benchmarks.forgetting.methods.finetuning import FineTuning, Step
from benchmarks.forgetting.methods.losses import kl_divergence, negative_preference
from chip.data.record import Record

REFUSALS = (
    "I don't know.",
    "I'm not sure.",
    "I have no information about that.",
    "That is not known to me.",
    "I can't say.",
    "I cannot answer that.",
    "Nothing about this is known to me.",
    "I have never heard of that.",
)


@dataclass(frozen=True)
class GradientAscent(FineTuning):
    """min log π(y_f | x_f): the loss on what is forgotten is raised, and nothing holds the rest."""

    name: ClassVar[str] = "gradient ascent"
    source: ClassVar[str] = "Jang et al. 2022, arXiv 2210.01504; as in arXiv 2404.05868, equation 1"

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(rate=rate) for rate in (3e-4, 1e-4, 7e-5, 5e-5, 3e-5, 1e-5)]

    def loss(self, step: Step) -> Tensor:
        return -step.forget.answers().cross_entropy


@dataclass(frozen=True)
class _Retaining(FineTuning):
    """Methods that also hold what is retained."""

    retain: float = 1.0
    """Weight of the loss on what is retained."""

    @classmethod
    def grid(cls) -> list[Self]:
        return [cls(rate=rate, retain=weight) for rate, weight in product((6e-4, 3e-4, 1e-4), (1.0, 4.0))]


@dataclass(frozen=True)
class GradDiff(_Retaining):
    """Gradient ascent on what is forgotten, descent on what is retained."""

    name: ClassVar[str] = "graddiff"
    source: ClassVar[str] = "Liu, Liu and Stone 2022, arXiv 2203.12817; as in TOFU, arXiv 2401.06121, section 3"

    def loss(self, step: Step) -> Tensor:
        return self.retain * step.retain.answers().cross_entropy - step.forget.answers().cross_entropy


@dataclass(frozen=True)
class KlMin(_Retaining):
    """Gradient ascent on what is forgotten; on what is retained, KL(before ‖ now).

    An adaptation: over the tokens of answers alone, not over those of questions.
    """

    name: ClassVar[str] = "kl-min"
    source: ClassVar[str] = "Maini et al. 2024, TOFU, arXiv 2401.06121, section 3"

    def loss(self, step: Step) -> Tensor:
        retained = kl_divergence(step.retain.reference.logs, step.retain.answers().logs)
        return self.retain * retained - step.forget.answers().cross_entropy


@dataclass(frozen=True)
class Npo(_Retaining):
    """Negative preference optimization, with the loss on what is retained."""

    name: ClassVar[str] = "npo"
    source: ClassVar[str] = "Zhang et al. 2024, arXiv 2404.05868, equation 3, with its retain loss"

    beta: float = 0.1
    """β: higher stops earlier, once an answer has become improbable."""

    def loss(self, step: Step) -> Tensor:
        before = step.forget.reference.log_probability
        forget = negative_preference(step.forget.answers().log_probability, before, self.beta)
        return forget + self.retain * step.retain.answers().cross_entropy


@dataclass(frozen=True)
class Idk(_Retaining):
    """Questions about what is forgotten are answered with a refusal; what is retained, as before.

    An adaptation: with a few refusals in the place of TOFU's hundred.
    """

    name: ClassVar[str] = "idk"
    source: ClassVar[str] = "Maini et al. 2024, TOFU, arXiv 2401.06121, section 3, preference optimization"

    def other_answer(self, record: Record, retained: Sequence[Record], draw: Callable[[int], int]) -> str:
        return REFUSALS[draw(len(REFUSALS))]

    def loss(self, step: Step) -> Tensor:
        return step.instead.answers().cross_entropy + self.retain * step.retain.answers().cross_entropy


@dataclass(frozen=True)
class Llmu(_Retaining):
    """Gradient ascent on what is forgotten, random answers to its questions, and KL(before ‖ now) on what is retained.

    The weights of the first two are those of the authors' code, 0.5 and 1. An adaptation: the random answer is one of a
    retained record, drawn once for each forgotten one, where theirs are five and drawn in each step.
    """

    name: ClassVar[str] = "llmu"
    source: ClassVar[str] = "Yao, Xu and Liu 2023, arXiv 2310.10683, as in the authors' code"

    ascent: float = 0.5
    """Weight of the ascent."""

    def other_answer(self, record: Record, retained: Sequence[Record], draw: Callable[[int], int]) -> str:
        return retained[draw(len(retained))].answer

    def loss(self, step: Step) -> Tensor:
        retained = kl_divergence(step.retain.reference.logs, step.retain.answers().logs)
        mismatch = step.instead.answers().cross_entropy
        return mismatch + self.retain * retained - self.ascent * step.forget.answers().cross_entropy
