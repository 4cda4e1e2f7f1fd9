"""General ability: what a model makes of text and plain questions that no record holds and no edit protects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from chip.data.answers import normalized
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.evaluation.context import EvalContext
from chip.general.collect import AUTO, GeneralData, check_sources, read_sources
from chip.general.held_out import held_out_data
from chip.general.loss import LONGEST, GeneralReference, losses_of
from chip.model.batching.batch_size import BatchSize
from chip.model.generation import OpenAnswer, answer_openly
from chip.model.loading import VLM
from chip.model.scoring import Head

Array = NDArray[np.float64]

ABILITY = "general"
"""The argument that says what is measured, the group of the figures, and what is said to be skipped."""


@dataclass(frozen=True)
class GivenGeneral:
    """What general ability is to be measured on."""

    auto: bool = False
    """Whether also, or only, on text that comes with chip."""
    records: tuple[Record, ...] = ()
    """What the user's files and folders hold."""

    @classmethod
    def of(cls, sources: Sequence[Path | str]) -> Self:
        """
        Args:
            sources: `auto`, files and folders as `read_keep` takes them, or `none` alone.

        Raises:
            InputError: one cannot be read, holds nothing, or contradicts another.
        """
        check_sources(sources, ABILITY)
        return cls(AUTO in sources, tuple(read_sources(sources, ABILITY)))

    def __bool__(self) -> bool:
        return self.auto or bool(self.records)


class GeneralAbility:
    """Asks several models about the same general data."""

    def __init__(self, given: GivenGeneral, request: ForgetRequest, original: VLM | None, size: BatchSize) -> None:
        """
        Args:
            original: the model before the edit, to compare with; what is needed of it is kept, and it may be let go.

        Raises:
            InputError: an image cannot be read; see `held_out_data`.
        """
        self._given, self._request, self._original_given = given, request, original is not None
        self._data = None if original is None else self._collect(original)
        self._before: GeneralReference | None = None
        if original is not None and self._data is not None and self._data.held_out:
            head = Head.of(original)
            self._before = GeneralReference(original, self._data.held_out, self._data.questions, size, head=head)
            self._reads_as = _reading(original, self._data)

    def measure(self, context: EvalContext) -> None:
        """Put figures into `context.outputs`, or say there why there are none."""
        if not self._given:
            return
        if self._data is None:
            self._data = self._collect(context.vlm)
        if self._data.note:
            lost = "" if self._original_given else ", or has lost it: --original would show that"
            context.skip(ABILITY, f"{self._data.note}{lost}")
        if self._data.held_out:
            with context.progress("measuring general ability", 1) as advance:
                context.outputs.general.update(self._figures(context, self._data))
                advance(1)

    def _collect(self, vlm: VLM) -> GeneralData:
        return held_out_data(vlm, self._request, self._given.auto, self._given.records, ABILITY)

    def _figures(self, context: EvalContext, data: GeneralData) -> dict[str, tuple[Array, Array]]:
        vlm, before = context.vlm, self._before
        if before is not None and _reading(vlm, data) != self._reads_as:
            context.skip(f"{ABILITY}: before", "the model before the edit takes text apart otherwise")
            before = None
        if before is None:
            nats, tokens = losses_of(vlm, data.held_out, context.batch_size).numpy().T
            answers = answer_openly(vlm, data.questions, LONGEST)
            return {"nats": (nats, tokens), "answers_that_end": _shares(_ended(answers))}
        kl, nats, nats_before, tokens = before.compare_texts(vlm).numpy().T
        answers = before.answer(vlm)
        same = [normalized(a.text) == normalized(b.text) for a, b in zip(answers, before.answers, strict=True)]
        return {
            "nats": (nats, tokens),
            "nats_before": (nats_before, tokens),
            "nats_above_before": (nats - nats_before, tokens),
            "kl_to_before": (kl, tokens),
            "answers_that_end": _shares(_ended(answers)),
            "answers_that_ended_before": _shares(_ended(before.answers)),
            "same_answers": _shares(same),
        }


def _reading(vlm: VLM, data: GeneralData) -> tuple[object, ...]:
    """Two models with the same can be compared token by token."""
    vocabulary = vlm.model.get_output_embeddings().weight.shape[0]
    return vocabulary, [prompt.tokens for prompt in vlm.prompts.read(data.held_out)]


def _ended(answers: Sequence[OpenAnswer]) -> list[bool]:
    return [answer.ended for answer in answers]


def _shares(values: Sequence[bool]) -> tuple[Array, Array]:
    return np.array(values, dtype=np.float64), np.ones(len(values))
