"""One model that is asked, with what measures and attacks need to ask it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from chip.data.record import Record
from chip.data.request import Partition
from chip.evaluation.answer_tokens import AnswerTokens
from chip.evaluation.outputs import EvalOutputs
from chip.evaluation.rows import NO_ATTACK
from chip.model.batching.batch_size import BatchSize
from chip.model.loading import VLM
from chip.model.scoring import score_records
from chip.progress import ProgressCallback, silent

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EvalContext:
    """One model, and the records it is asked about by their index in `records`."""

    vlm: VLM
    records: Sequence[Record]
    attacked: Sequence[int]
    """What is asked under attack: the target, and some siblings. They show whether an attack breaks more than it
    finds."""
    members: Sequence[int]
    """The target's trained wordings."""
    retained: Sequence[int]
    """Trained wordings of all that is retained."""
    unseen: Sequence[Record] = ()
    """Records like the target's that were never trained on; may be empty."""
    partition: Partition | None = None
    """Which of the records belong to which target."""
    siblings: Sequence[int] = ()
    """Trained wordings of the siblings."""
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """All records by their group."""
    original: VLM | None = None
    """The model before the edit, where it was given."""
    seed: int = 0
    batch_size: BatchSize = field(default_factory=BatchSize)
    progress: ProgressCallback = silent
    outputs: EvalOutputs = field(default_factory=EvalOutputs)
    """What the model has shown so far."""

    def put(self, attack: str, measure: str, values: Mapping[int, float]) -> None:
        """Values of a measure by record; the others are NaN."""
        self.outputs.put(attack, measure, values, len(self.records))

    def sample_target(self, most: int) -> list[int]:
        """At most so many of the target's records, drawn by the seed, ascending."""
        indices = list(self.groups["target"])
        order = np.random.default_rng(self.seed).permutation(len(indices))[:most]
        return sorted(indices[place] for place in order.tolist())

    def skip(self, attack: str, why: str) -> None:
        """Say that an attack, or a step of one, could not be run."""
        self.outputs.skipped[attack] = why

    def put_tokens(self, attack: str, tokens: Mapping[int, AnswerTokens]) -> None:
        """The same two measures as `score`, of answers whose tokens are known."""
        self.put(attack, "exact_match", {index: float(each.hit.all()) for index, each in tokens.items()})
        probability = {index: float(np.exp(each.log_probability.mean())) for index, each in tokens.items()}
        self.put(attack, "answer_probability", probability)

    def score(self, attack: str, questions: Mapping[int, Record], what: str | None = None) -> None:
        """Measure `exact_match` and `answer_probability` of records as an attack has changed them.

        Args:
            attack: the attack and its step, as in `quantization: 4 bits`.
            questions: index of the record -> what is asked.
            what: what progress calls it; by default the attack.
        """
        records = list(questions.values())
        scores = score_records(self.vlm, records, self.batch_size, self.progress, what or attack)
        if attack == NO_ATTACK:
            scores.check_numbers(records)
        for name in ("exact_match", "answer_probability"):
            self.put(attack, name, dict(zip(questions, getattr(scores, name).tolist(), strict=True)))

    def score_attacked(self, attack: str, change: Callable[[Record], Record | None] = lambda record: record) -> None:
        """The same of the records under attack, changed if it is them that the attack changes; None is not asked."""
        changed = {index: change(self.records[index]) for index in self.attacked}
        questions = {index: record for index, record in changed.items() if record is not None}
        if questions:
            self.score(attack, questions)

    def answer_probabilities(self, answers: Mapping[int, Sequence[str]], what: str) -> dict[int, Array]:
        """(answers,) of each record: the length-normalized probability of each of these answers to its question."""
        pairs = [(index, answer) for index, several in answers.items() for answer in several]
        records = [replace(self.records[index], answer=answer) for index, answer in pairs]
        scores = score_records(self.vlm, records, self.batch_size, self.progress, what) if records else None
        probabilities = iter([] if scores is None else scores.answer_probability.tolist())
        return {index: np.array([next(probabilities) for _ in several]) for index, several in answers.items()}
