"""One method, one target: edit, write, load what was written, ask, and compare with the retrained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.forgetting.jobs import Request
from benchmarks.forgetting.methods import Applied, BenchmarkMethod, measured
from benchmarks.forgetting.questions import LEARNED, MAX_QUESTIONS, REPORTED, TUNED, questions
from benchmarks.forgetting.results import NAN, Result, current_name, figures
from benchmarks.forgetting.store import Store, atomic_write, method_key
from benchmarks.forgetting.subjects import Subject
from chip.checkpoint.writer import write_patched
from chip.errors import ChipError
from chip.evaluation.attacks import find_attacks
from chip.evaluation.attacks.base import STANDARD
from chip.evaluation.attacks.membership import never_trained
from chip.evaluation.compare import compare
from chip.evaluation.config import EvalConfig
from chip.evaluation.measure import measure
from chip.evaluation.outputs import EvalOutputs
from chip.evaluation.rows import NO_ATTACK
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import score_records

GENERATED = 64
"""Records of a group, at most, for which an attacked model generates text, and siblings that are asked under attack."""
NOT_ASKED = ("classification_accuracy", "cloze_accuracy", "truth_ratio")
"""What tables of an evaluation expect, and a model that is not attacked is not asked for."""


class Judge:
    """Of one request. What is known of it is read, not measured again."""

    def __init__(self, subject: Subject, request: Request) -> None:
        self._subject, self._request = subject, request
        self._results = Store("results")

    def find(self, method: BenchmarkMethod, attacked: bool) -> Result | None:
        """What is known already; of a method that is not to be attacked, also what is known of it under attack."""
        stored = self._results.read(self._key(method, attacked=True))
        if stored is None and not attacked:
            stored = self._results.read(self._key(method, attacked=False))
        return None if stored is None else Result.from_json(stored)

    def judge(self, method: BenchmarkMethod, reference: BenchmarkMethod, attacked: bool) -> Result:
        """What a method leaves, next to the reference, which is judged like any other and comes first."""
        known = self.find(method, attacked)
        if known is not None:
            return known
        plan = self._plan(attacked)
        try:
            applied = self._apply(method)
            outputs = self._outputs(method, applied, plan)
        except ChipError as error:
            result = Result(method.version, method.settings, attacked, NAN, NAN, NAN, {}, str(error))
        else:
            other = outputs if method == reference else self._of_reference(reference, plan)
            values = figures(compare(plan, outputs, other).rows)
            cost = (applied.seconds, applied.peak_bytes, applied.changed_weights)
            result = Result(method.version, method.settings, attacked, *cost, values)
            if method == reference:
                self._store(reference, plan, outputs)  # first: once there is a result, there are the arrays
        self._results.write(self._key(method, attacked), result.to_json())
        return result

    def _apply(self, method: BenchmarkMethod) -> Applied:
        subject, request = self._subject, self._request
        asked = questions(subject.world, request.target, (*LEARNED, *TUNED)).request
        return measured(method, subject.vlm, subject.source, asked, request.model.seed)

    def _outputs(self, method: BenchmarkMethod, applied: Applied, plan: EvalConfig) -> EvalOutputs:
        with TemporaryDirectory(prefix="chip-") as scratch:
            written = Path(scratch) / "edited"
            write_patched(self._subject.source, written, applied.tensors)
            return ask(load_vlm(written, self._subject.device), plan)

    def _of_reference(self, reference: BenchmarkMethod, plan: EvalConfig) -> EvalOutputs:
        """What the reference showed when it was asked the same, or all of it and more."""
        under_attack = self._arrays(reference, attacked=True)
        path = under_attack if plan.attacks or under_attack.exists() else self._arrays(reference, attacked=False)
        with np.load(path) as arrays:
            return unpacked({name: arrays[name] for name in arrays.files}, plan)

    def _store(self, reference: BenchmarkMethod, plan: EvalConfig, outputs: EvalOutputs) -> None:
        with atomic_write(self._arrays(reference, bool(plan.attacks))) as beside:
            np.savez_compressed(beside, allow_pickle=False, **packed(outputs))

    def _arrays(self, reference: BenchmarkMethod, attacked: bool) -> Path:
        return self._results.path(self._key(reference, attacked), ".npz")

    def _plan(self, attacked: bool) -> EvalConfig:
        subject, request = self._subject, self._request
        reported = questions(subject.world, request.target, REPORTED, MAX_QUESTIONS)
        return EvalConfig(
            reported.request,
            find_attacks(STANDARD) if attacked else (),
            known_groups=reported.groups,
            unseen=subject.unseen(request.level) if attacked else (),
            sampled=GENERATED,
        )

    def _key(self, method: BenchmarkMethod, attacked: bool) -> dict[str, Any]:
        """All that decides a result; what is asked, and which attacks are run, `PROTOCOL` stands for."""
        subject, request = self._subject, self._request
        return {
            **request.model.key,
            "digest": subject.world.digest,
            "checkpoint": subject.folder.name,
            "reference": subject.reference(request.level).name,
            "level": request.level,
            "target": request.target,
            "attacked": attacked,
            **method_key(method),
        }


def ask(vlm: VLM, plan: EvalConfig) -> EvalOutputs:
    """All that there is to know under attack; else what the model answers and how probable that is, which is cheap."""
    if plan.attacks:
        return measure(vlm, plan)
    scores, outputs = score_records(vlm, plan.records), EvalOutputs()
    for name in ("exact_match", "answer_probability"):
        outputs.put(NO_ATTACK, name, dict(enumerate(getattr(scores, name).tolist())), len(plan.records))
    for name in NOT_ASKED:
        outputs.put(NO_ATTACK, name, {}, len(plan.records))
    return outputs


def packed(outputs: EvalOutputs) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """As named arrays."""
    values = {"\t".join(("value", *key)): array for key, array in outputs.values.items()}
    pairs = {
        f"membership\t{name}\t{side}": array
        for name, both in outputs.membership.items()
        for side, array in enumerate(both)
    }
    return values | pairs


def unpacked(arrays: Mapping[str, Any], plan: EvalConfig) -> EvalOutputs:
    """What `packed` made arrays of, when asked by this plan."""
    values: dict[tuple[str, str], Any] = {}
    sides: dict[tuple[str, str], Any] = {}
    for name, array in arrays.items():
        kind, first, second = map(current_name, name.split("\t"))
        (values if kind == "value" else sides)[first, second] = array
    pairs = {name: (sides[name, "0"], sides[name, "1"]) for name, _ in sides}
    others = never_trained(plan.records, plan.members, plan.unseen, plan.seed) if pairs else []
    return EvalOutputs(values, pairs, others)
