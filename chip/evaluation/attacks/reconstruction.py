"""Reconstruction: does the model remember when it is told where to look? After MedForget (Wu et al. 2025, arXiv
2512.09867), whose prompts name one level of the hierarchy after the other."""

from __future__ import annotations

from dataclasses import replace

from chip.data.record import LEVELS, Record

STEPS = ("none", "institution", "patient", "study")
"""The innermost level that the prompt names."""


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
