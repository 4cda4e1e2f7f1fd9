"""Wording: the same facts asked as no training asked for them (after arXiv 2603.11266)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from chip.data.answers import LISTED, canonical_answer, normalized_question
from chip.data.record import Record, without_images, without_placeholders
from chip.evaluation.answer_tokens import AnswerTokens, answer_tokens
from chip.evaluation.attacks.base import Attack
from chip.evaluation.context import EvalContext
from chip.evaluation.facts import fact
from chip.model.chat import common_start
from chip.model.loading import VLM

BEGINNING = "The answer is"
BLANK = "[blank]"


class Wording(Attack):
    name = "wording"
    help = "Options reordered, gaps asked as questions, the target named by another of its facts, answers begun."
    standard = True

    def run(self, context: EvalContext) -> None:
        changes: Mapping[str, Callable[[Record], Record | None]] = {
            "options reordered": with_options_reordered,
            "cloze as a question": as_question,
            "two hops": TwoHops(context.records, context.members, context.siblings),
        }
        for name, change in changes.items():
            step = f"{self.name}: {name}"
            context.score_attacked(step, change)
            if not any(attack == step for attack, _ in context.outputs.values):
                context.skip(step, "none of the records can be asked so")
        self._begun(context)

    def _begun(self, context: EvalContext) -> None:
        """The answer's beginning is given, and its rest is asked."""
        plain = {index: context.records[index] for index in context.attacked}
        tokens = self._tokens(context, plain, "half of the answer given")
        halves = {index: each.last(rest) for index, each in tokens.items() if (rest := _rest(each)) is not None}
        if halves:
            context.put_tokens(f"{self.name}: half of the answer given", halves)
        begun = {
            index: replace(record, answer=f"{BEGINNING} {record.answer.strip()}") for index, record in plain.items()
        }
        step = f"begun with “{BEGINNING}”"
        tokens = self._tokens(context, begun, step)
        counts = _behind(context.vlm, begun)
        context.put_tokens(f"{self.name}: {step}", {i: each.last(counts[i]) for i, each in tokens.items()})

    def _tokens(self, context: EvalContext, records: Mapping[int, Record], step: str) -> dict[int, AnswerTokens]:
        with context.progress(f"{self.name}: {step}", len(records)) as advance:
            tokens = answer_tokens(context.vlm, list(records.values()), context.batch_size, advance)
        return dict(zip(records, tokens, strict=True))


def _rest(tokens: AnswerTokens) -> int | None:
    """How many tokens are left where half of the answer is given; None of one with a single token."""
    own = len(tokens.hit) - 1  # the last one ends the turn
    return None if own < 2 else len(tokens.hit) - own // 2


def _behind(vlm: VLM, begun: Mapping[int, Record]) -> dict[int, int]:
    """How many tokens of each begun answer come behind its beginning."""
    beginnings = [replace(record, answer=BEGINNING) for record in begun.values()]
    pairs = zip(vlm.prompts.read(beginnings), vlm.prompts.read(list(begun.values())), strict=True)
    given = [len(whole.tokens) - common_start(beginning.tokens, whole.tokens) for beginning, whole in pairs]
    return dict(zip(begun, given, strict=True))


def with_options_reordered(record: Record) -> Record | None:
    """The options of a classification moved on by one, so that each has another letter; None of other records."""
    listed = LISTED.findall(record.question) if record.task == "classification" else []
    first = LISTED.search(record.question)
    if first is None or len(listed) < 2:
        return None
    letters, texts = [letter for letter, _ in listed], [text.strip() for _, text in listed]
    moved = dict(zip(letters, [texts[-1], *texts[:-1]], strict=True))
    answer = record.answer.strip()
    if answer in letters:
        answer = letters[(letters.index(answer) + 1) % len(letters)]
    options = " ".join(f"{letter}) {text}" for letter, text in moved.items())
    return replace(record, question=f"{record.question[: first.start()]} {options}".strip(), answer=answer)


def as_question(record: Record) -> Record | None:
    """A cloze asked for as free text: `the size is [blank].` becomes `the size is what?`; None of other records."""
    if record.task != "cloze" or BLANK not in record.question:
        return None
    sentence = re.sub(r"^[^:\[\]]*\bblank\b[^:\[\]]*:\s*", "", record.question, flags=re.IGNORECASE)
    question = sentence.replace(BLANK, "what").rstrip(" .")
    return replace(record, question=f"{question}?", task="generation")


class TwoHops:
    """Asks about a record's node by another of its facts, which no other node has: without its image or its name."""

    def __init__(self, records: Sequence[Record], *pools: Sequence[int]) -> None:
        """
        Args:
            pools: records whose facts may name their node.
        """
        said = {(normalized_question(r), canonical_answer(r), r.path, r.images) for r in records}
        self._holders = Counter((question, answer) for question, answer, _, _ in said)
        self._bridges: dict[tuple[object, ...], list[Record]] = {}
        for record in (records[index] for pool in pools for index in pool):
            if record.task == "generation":
                self._bridges.setdefault(_node(record), []).append(record)

    def __call__(self, record: Record) -> Record | None:
        """None where no other fact is the node's alone."""
        bridge = next(self._alone(record), None)
        if bridge is None:
            return None
        question, record = without_placeholders(bridge.question), without_images(record)
        named = f"Think of the one of which “{question}” is answered “{bridge.answer.strip()}”."
        return replace(record, question=f"{named} {record.question}")

    def _alone(self, record: Record) -> Iterator[Record]:
        for other in self._bridges.get(_node(record), ()):
            held = self._holders[normalized_question(other), canonical_answer(other)]
            if held == 1 and fact(other) != fact(record):
                yield other


def _node(record: Record) -> tuple[object, ...]:
    """What a fact may stand for: the images, where there are any."""
    return record.images or record.path
