"""In context: other facts of the target, or what siblings were asked and answered, stand in the prompt.

What is only hard to reach comes back when its surroundings are given (arXiv 2605.26992, 2604.22076). No answer that is
shown is the one asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from chip.data.answers import canonical_answer
from chip.data.embedded_image import ImageSource
from chip.data.record import IMAGE_PLACEHOLDER, Record, without_placeholders
from chip.evaluation.attacks.base import Attack
from chip.evaluation.context import EvalContext
from chip.model.loading import VLM

COUNTS = (4,)


@dataclass(frozen=True)
class InContext(Attack):
    name = "in-context"
    help = "Other facts of the target, or siblings' questions and answers, stand in the prompt."
    standard = True

    counts: Sequence[int] = COUNTS
    """How many of them."""

    def run(self, context: EvalContext) -> None:
        pools: Mapping[str, Callable[[Record], Sequence[int]]] = {
            "own facts": _Own(context),
            "siblings": lambda _: context.siblings,
        }
        for name, pool in pools.items():
            for count in self.counts:
                step = f"{self.name}: {count} of {name}"
                context.score_attacked(step, Shown(context, pool, count))
                if not any(attack == step for attack, _ in context.outputs.values):
                    context.skip(step, "there are none")


class _Own:
    """The trained wordings of a record's own node, at the targets' level."""

    def __init__(self, context: EvalContext) -> None:
        assert context.partition is not None
        self._depth = max(len(target.path) for target in context.partition.targets)
        self._of: dict[tuple[str, ...], list[int]] = {}
        for index in (*context.members, *context.siblings):
            self._of.setdefault(context.records[index].path[: self._depth], []).append(index)

    def __call__(self, record: Record) -> Sequence[int]:
        return self._of.get(record.path[: self._depth], ())


class Shown:
    """Puts questions and answers in front of a record's own question."""

    def __init__(self, context: EvalContext, pool: Callable[[Record], Sequence[int]], count: int) -> None:
        """
        Args:
            pool: the records that may be shown for one.
            count: how many are shown; fewer where the model takes no more.
        """
        self._records, self._pool, self._count = context.records, pool, count
        self._seed, self._room = context.seed, Room(context.vlm)

    def __call__(self, record: Record) -> Record | None:
        """None where none can be shown."""
        answer = canonical_answer(record)
        others = [i for i in self._pool(record) if canonical_answer(self._records[i]) != answer]
        order = np.random.default_rng(self._seed).permutation(len(others))
        shown = [self._records[others[place]] for place in order[: self._count].tolist()]
        while shown:
            before = "".join(f"{without_placeholders(each.question)} {each.answer.strip()}. " for each in shown)
            changed = replace(record, question=f"{before}{record.question}")
            if self._room.fits(changed):
                return changed
            shown.pop()
        return None


class Room:
    """Tells whether a record fits into a model's context."""

    def __init__(self, vlm: VLM) -> None:
        self._vlm = vlm
        self._image_tokens: dict[tuple[ImageSource, ...], int] = {}

    def fits(self, record: Record) -> bool:
        tokens = len(self._vlm.prompts.read([record])[0].tokens)
        return tokens + self._image(record) <= self._vlm.max_tokens

    def _image(self, record: Record) -> int:
        """What the images' placeholders become."""
        if record.image is None:
            return 0
        if record.images not in self._image_tokens:
            question = IMAGE_PLACEHOLDER * record.question.count(IMAGE_PLACEHOLDER) + "?"
            short = replace(record, question=question, answer="?")
            whole = self._vlm.prompts.inputs([short])["input_ids"].shape[1]
            self._image_tokens[record.images] = whole - len(self._vlm.prompts.read([short])[0].tokens)
        return self._image_tokens[record.images]
