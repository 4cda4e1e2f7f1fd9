"""Relearning from the target itself: a part of its records is trained on, and the rest is asked.

What comes back was not learned from that part: it was still there (Deeb & Roger 2024, arXiv 2410.08827). A retrained
model shows what can be concluded from the part alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from chip.evaluation.attacks.base import Attack
from chip.evaluation.attacks.relearning import BUDGETS, relearning
from chip.evaluation.context import EvalContext
from chip.evaluation.facts import fact, facts

SHARE = 1 / 3


@dataclass(frozen=True)
class RelearningTarget(Attack):
    name = "relearning-target"
    help = "The model is trained on a third of the target's own facts, and asked about the rest."

    budgets: Sequence[int] = BUDGETS
    """Gradient steps after which the model is asked, ascending."""

    def run(self, context: EvalContext) -> None:
        shown = shown_facts(context)
        questions = {i: context.records[i] for i in context.attacked if fact(context.records[i]) not in shown}
        trained = [context.records[i] for i in context.members if fact(context.records[i]) in shown]
        if not trained or not set(context.groups["target"]) & set(questions):
            context.skip(self.name, "the target has fewer than two facts")
            return
        with (
            context.progress(self.name, max(self.budgets)) as advance,
            closing(relearning(context.vlm, trained, context.seed, self.budgets, advance)) as budgets,
        ):
            for steps in budgets:
                context.score(f"{self.name}: {steps} steps", questions)


def shown_facts(context: EvalContext) -> set[Hashable]:
    """A third of each target's facts, drawn by the seed, at least one where there are two; all wordings of a fact go
    together."""
    assert context.partition is not None
    generator = np.random.default_rng(context.seed)
    shown: set[Hashable] = set()
    for indices in context.partition.forget_of.values():
        own = list(facts(context.records, [i for i in indices if not context.records[i].held_out]))
        count = min(max(1, round(SHARE * len(own))), len(own) - 1)
        shown |= {own[place] for place in generator.permutation(len(own))[: max(count, 0)].tolist()}
    return shown
