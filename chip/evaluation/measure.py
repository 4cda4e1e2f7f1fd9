"""Asks one model all that an evaluation needs to know of it: a value for each record, measure and attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from chip.data.answers import alternatives, choices, right
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.errors import InputError
from chip.evaluation.attacks import membership
from chip.evaluation.attacks.cross_modal import CHANGES, Changed
from chip.evaluation.attacks.quantization import SCHEMES, quantized
from chip.evaluation.attacks.reconstruction import STEPS, with_context
from chip.evaluation.attacks.relearning import BUDGETS, relearning
from chip.evaluation.forgetting import expected_leak, leak_at_k, truth_ratio
from chip.evaluation.generation import answer_greedily, draw_answers
from chip.evaluation.groups import groups
from chip.evaluation.judge import Judge
from chip.evaluation.rouge import rouge_l
from chip.evaluation.rows import NO_ATTACK
from chip.evaluation.tokens import answer_tokens
from chip.model.batching.batch_size import BatchSize
from chip.model.loading import VLM
from chip.model.scoring import Scores, score_records
from chip.progress import ProgressCallback, silent

Array = NDArray[np.float64]

ATTACKS = ("reconstruction", "cross-modal", "quantization", "relearning", "membership")


@dataclass(frozen=True)
class EvalConfig:
    """What is asked, of every model alike."""

    request: ForgetRequest
    attacks: Sequence[str] = ()
    """Some of `ATTACKS`."""
    seed: int = 0
    known_groups: Mapping[str, Sequence[int]] | None = None
    """As `groups` has them, where one knows better, such as what a target shares with its parent."""
    unseen: Sequence[Record] = ()
    """Records like the target's that were never trained on, for membership inference; they are in no group. Where there
    are none: the target's own questions with wrong answers."""
    draws: int = 16
    """Answers drawn for each of the target's questions; 0: none."""
    wrong_answers: int = 5
    """For the truth ratio, at most; as many as in TOFU."""
    sampled: int = 256
    """Records of a group, at most, for which text is generated: they are drawn by the seed. As many siblings are asked
    under attack; of the target, all."""
    budgets: Sequence[int] = BUDGETS
    """Gradient steps of relearning, ascending."""
    judge: Judge | None = None
    """Is sent questions and answers of the records for which text is generated."""

    def __post_init__(self) -> None:
        """Raise `InputError` for an attack that there is not."""
        for attack in self.attacks:
            if attack not in ATTACKS:
                raise InputError(f"--attacks {attack}: not known, there are {', '.join(ATTACKS)}")

    @property
    def records(self) -> tuple[Record, ...]:
        return self.request.hierarchy.records

    @cached_property
    def groups(self) -> Mapping[str, Sequence[int]]:
        """Each record in one of `GROUPS`."""
        return self.known_groups or groups(self.request.hierarchy, self.request.partition)

    @cached_property
    def attacked(self) -> list[int]:
        """The target, and siblings: they show whether an attack breaks more than it finds."""
        return sorted((*self.groups["target"], *self.some("siblings")))

    @cached_property
    def members(self) -> list[int]:
        """The target's trained wordings."""
        return [index for index in self.groups["target"] if not self.records[index].held_out]

    @cached_property
    def others(self) -> list[int]:
        """What relearning learns from: trained wordings of what is retained."""
        forgotten = set(self.request.partition.forget)
        return [i for i, record in enumerate(self.records) if i not in forgotten and not record.held_out]

    def some(self, group: str) -> list[int]:
        """The group's records for which text is generated."""
        indices = self.groups[group]
        if len(indices) <= self.sampled:
            return list(indices)
        return sorted(np.random.default_rng(self.seed).choice(indices, self.sampled, replace=False).tolist())


@dataclass(frozen=True)
class EvalOutputs:
    """What one model showed. Values of a measure are by record, NaN where it was not asked."""

    values: dict[tuple[str, str], Array] = field(default_factory=dict)
    """(attack, measure) -> (records,)."""
    membership: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    """Score -> that of each member, that of each record never trained on."""
    never_trained: list[Record] = field(default_factory=list)
    """The latter, in their order."""

    def put(self, attack: str, measure: str, values: Mapping[int, float], count: int) -> None:
        """Values by record, of `count` records."""
        full = np.full(count, np.nan)
        full[list(values)] = list(values.values())
        self.values[attack, measure] = full


def measure(
    vlm: VLM, plan: EvalConfig, size: BatchSize | None = None, progress: ProgressCallback = silent
) -> EvalOutputs:
    """Ask a model everything; it is left as it was.

    Raises:
        InputError: an image cannot be read, or an attack cannot be run on this model.
        RunError: a single record, or relearning, does not fit into memory; the judge does not answer.
    """
    asking = _Asking(vlm, plan, size or BatchSize(), progress)
    asking.measures()
    for attack in plan.attacks:
        asking.attack(attack)
    return asking.measured


class _Asking:
    """One model, being asked."""

    def __init__(self, vlm: VLM, plan: EvalConfig, size: BatchSize, progress: ProgressCallback) -> None:
        self._vlm, self._plan, self._size, self._progress = vlm, plan, size, progress
        self.measured = EvalOutputs()

    def measures(self) -> None:
        self._score(NO_ATTACK, "asking", dict(enumerate(self._plan.records)))
        self._choose()
        self._compare_with_wrong()
        self._generate()
        self._draw()

    def attack(self, attack: str) -> None:
        match attack:
            case "reconstruction":
                for step in STEPS:
                    self._score_changed(f"reconstruction: {step}", partial(with_context, step=step))
            case "cross-modal":
                for change in CHANGES:
                    self._score_changed(f"cross-modal: {change}", Changed(change))
            case "quantization":
                for scheme, (bits, group) in SCHEMES.items():
                    with quantized(self._vlm, bits, group):
                        self._score_changed(f"quantization: {scheme}")
            case "relearning":
                self._relearn()
            case "membership":
                self._infer_membership()

    def _put(self, attack: str, measure: str, values: Mapping[int, float]) -> None:
        self.measured.put(attack, measure, values, len(self._plan.records))

    def _scores(self, records: Sequence[Record], what: str) -> Scores:
        return score_records(self._vlm, records, self._size, self._progress, what)

    def _score(self, attack: str, what: str, asked: Mapping[int, Record]) -> None:
        """Exact match and probability of the answers, of records as the attack has changed them."""
        scores = self._scores(list(asked.values()), what)
        for name in ("exact_match", "answer_probability"):
            self._put(attack, name, dict(zip(asked, getattr(scores, name).tolist(), strict=True)))

    def _score_changed(self, attack: str, change: Callable[[Record], Record | None] = lambda record: record) -> None:
        """The records under attack, changed if it is them that the attack changes; None is not asked."""
        changed = {index: change(self._plan.records[index]) for index in self._plan.attacked}
        asked = {index: record for index, record in changed.items() if record is not None}
        if asked:
            self._score(attack, attack, asked)

    def _probabilities(self, answers: Mapping[int, Sequence[str]], what: str) -> dict[int, Array]:
        """Length-normalized probability of each of some answers to a record's question."""
        pairs = [(index, answer) for index, several in answers.items() for answer in several]
        records = [replace(self._plan.records[index], answer=answer) for index, answer in pairs]
        found = iter(self._scores(records, what).answer_probability.tolist() if records else [])
        return {index: np.array([next(found) for _ in several]) for index, several in answers.items()}

    def _choose(self) -> None:
        """Classification by the most probable option: a model that says nothing sensible any more is at chance."""
        records = dict(enumerate(self._plan.records))
        listed = {i: choices(record) for i, record in records.items() if record.task == "classification"}
        hits = {}
        for index, found in self._probabilities(listed, "choosing").items():
            if len(found):
                hits[index] = float(listed[index][int(found.argmax())] == records[index].answer.strip())
        self._put(NO_ATTACK, "classification_accuracy", hits)
        exact = self.measured.values[NO_ATTACK, "exact_match"]
        cloze = {i: float(exact[i]) for i, record in records.items() if record.task == "cloze"}
        self._put(NO_ATTACK, "cloze_accuracy", cloze)

    def _compare_with_wrong(self) -> None:
        plan = self._plan
        wrong = alternatives(plan.records, plan.groups["target"], plan.wrong_answers, plan.seed)
        own = self.measured.values[NO_ATTACK, "answer_probability"]
        found = self._probabilities(wrong, "wrong answers")
        self._put(NO_ATTACK, "truth_ratio", {i: truth_ratio(float(own[i]), each) for i, each in found.items()})

    def _generate(self) -> None:
        records = self._plan.records
        some = sorted(index for group in self._plan.groups for index in self._plan.some(group))
        asked = [records[index] for index in some]
        with self._progress("generating", len(some)) as advance:
            given = dict(zip(some, answer_greedily(self._vlm, asked, on_batch=advance), strict=True))
        self._put(NO_ATTACK, "rouge_l", {i: rouge_l(text, records[i].answer) for i, text in given.items()})
        judge = self._plan.judge
        if judge is not None:
            verdicts = {}
            with self._progress("judging", len(some)) as advance:
                for index, text in given.items():
                    verdicts[index] = float(judge.right(records[index].question, records[index].answer, text))
                    advance(1)
            self._put(NO_ATTACK, "judged", verdicts)

    def _draw(self) -> None:
        """Leaks among answers drawn at temperature 1, and what they are expected to be over all draws."""
        plan, some = self._plan, self._plan.some("target")
        if not plan.draws:
            return
        asked = [plan.records[index] for index in some]
        with self._progress("drawing", plan.draws * len(some)) as advance:
            drawn = draw_answers(self._vlm, asked, plan.draws, plan.seed, on_batch=advance)
        hits = [[right(text, record.answer) for text in texts] for texts, record in zip(drawn, asked, strict=True)]
        leaked = leak_at_k(np.array(hits, dtype=np.float64).reshape(len(some), plan.draws))
        self._put(NO_ATTACK, f"leak_at_{plan.draws}", dict(zip(some, leaked.tolist(), strict=True)))
        lengths = np.array([prompt.answer for prompt in self._vlm.prompts.read(asked)])
        whole = self.measured.values[NO_ATTACK, "answer_probability"][some] ** lengths
        expected = expected_leak(whole, plan.draws).tolist()
        self._put(NO_ATTACK, f"expected_leak_at_{plan.draws}", dict(zip(some, expected, strict=True)))

    def _relearn(self) -> None:
        plan = self._plan
        others = [plan.records[index] for index in plan.others]
        with (
            self._progress("relearning", max(plan.budgets)) as advance,
            closing(relearning(self._vlm, others, plan.seed, plan.budgets, advance)) as budgets,
        ):
            for steps in budgets:
                self._score_changed(f"relearning: {steps} steps")

    def _infer_membership(self) -> None:
        plan = self._plan
        others = membership.never_trained(plan.records, plan.members, plan.unseen, plan.seed)
        asked = [*(plan.records[index] for index in plan.members), *others]
        with self._progress("membership", len(asked)) as advance:
            tokens = answer_tokens(self._vlm, asked, self._size, advance)
        count = len(plan.members)
        for name, of in membership.SCORES.items():
            values = np.array([of(each) for each in tokens])
            self.measured.membership[name] = values[:count], values[count:]
        self.measured.never_trained.extend(others)
