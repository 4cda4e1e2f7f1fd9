"""Reconstruction: does the model remember when it is told where to look? After MedForget (Wu et al. 2025, arXiv
2512.09867), whose prompts name one level of the hierarchy after the other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from chip.data.record import LEVELS, Record
from chip.evaluation.attacks.base import Attack
from chip.evaluation.context import EvalContext

STEPS = ("none", "institution", "patient", "study")
"""The innermost level that the prompt names."""


class Reconstruction(Attack):
    name = "reconstruction"
    help = "The question is led by the names of more and more levels of the hierarchy."
    standard = True

    def run(self, context: EvalContext) -> None:
        for step in STEPS:
            context.score_attacked(f"{self.name}: {step}", partial(with_context, step=step))


def with_context(record: Record, step: str) -> Record | None:
    """The record, its question led by the ids of its nodes from the institution down to `step`.

    None where the record has no node of that level.
    """
    depth = STEPS.index(step)
    if len(record.path) < depth:
        return None
    named = zip(LEVELS[:depth], record.path, strict=False)
    context = "".join(f"{level.capitalize()}: {name}. " for level, name in named)
    return replace(record, question=f"{context}{record.question}")
