"""One method, one target: edit, write, load what was written, ask, and compare with the retrained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.forgetting.jobs import Request
from benchmarks.forgetting.methods import Applied, Method, measured
from benchmarks.forgetting.questions import CHOSEN, LEARNED, MAX_QUESTIONS, REPORTED, questions
from benchmarks.forgetting.results import NAN, Result, figures
from benchmarks.forgetting.store import Store, of_method, whole
from benchmarks.forgetting.subjects import Subject
from chip.checkpoint.writer import write_patched
from chip.errors import ChipError
from chip.evaluation.attacks import ATTACKS
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

    def find(self, method: Method, attacked: bool) -> Result | None:
        """What is known already; of a method that is not to be attacked, also what is known of it under attack."""
        found = self._results.read(self._what(method, attacked=True))
        if found is None and not attacked:
            found = self._results.read(self._what(method, attacked=False))
        return None if found is None else Result.from_json(found)

    def judge(self, method: Method, reference: Method, attacked: bool) -> Result:
        """What a method leaves, next to the reference, which is judged like any other and comes first."""
        known = self.find(method, attacked)
        if known is not None:
            return known
        plan = self._plan(attacked)
        try:
            applied = self._apply(method)
            asked = self._asked(method, applied, plan)
        except ChipError as error:
            result = Result(method.settings, attacked, NAN, NAN, NAN, {}, str(error))
        else:
            other = asked if method == reference else self._of_reference(reference, plan)
            found = figures(compare(plan, asked, other).rows)
            cost = (applied.seconds, applied.peak_bytes, applied.changed_weights)
            result = Result(method.settings, attacked, *cost, found)
            if method == reference:
                self._keep(reference, plan, asked)  # first: once there is a result, there are the arrays
        self._results.write(self._what(method, attacked), result.to_json())
        return result

    def _apply(self, method: Method) -> Applied:
        subject, seed = self._subject, self._request.model.seed
        request = questions(subject.world, self._request.target, (*LEARNED, *CHOSEN)).request
        return measured(method, subject.vlm, subject.source, request, seed)

    def _asked(self, method: Method, applied: Applied, plan: EvalConfig) -> EvalOutputs:
        with TemporaryDirectory(prefix="chip-") as scratch:
            written = Path(scratch) / "edited"
            write_patched(self._subject.source, written, applied.tensors)
            return ask(load_vlm(written, self._subject.device), plan)

    def _of_reference(self, reference: Method, plan: EvalConfig) -> EvalOutputs:
        """What the reference showed when it was asked the same, or all of it and more."""
        under_attack = self._arrays(reference, attacked=True)
        path = under_attack if plan.attacks or under_attack.exists() else self._arrays(reference, attacked=False)
        with np.load(path) as kept:
            return unpacked({name: kept[name] for name in kept.files}, plan)

    def _keep(self, reference: Method, plan: EvalConfig, asked: EvalOutputs) -> None:
        with whole(self._arrays(reference, bool(plan.attacks))) as beside:
            np.savez_compressed(beside, allow_pickle=False, **packed(asked))

    def _arrays(self, reference: Method, attacked: bool) -> Path:
        return self._results.path(self._what(reference, attacked), ".npz")

    def _plan(self, attacked: bool) -> EvalConfig:
        subject, request = self._subject, self._request
        asked = questions(subject.world, request.target, REPORTED, MAX_QUESTIONS)
        return EvalConfig(
            asked.request,
            ATTACKS if attacked else (),
            known_groups=asked.groups,
            unseen=subject.unseen(request.level) if attacked else (),
            sampled=GENERATED,
        )

    def _what(self, method: Method, attacked: bool) -> dict[str, Any]:
        """All that decides a result."""
        subject, request = self._subject, self._request
        return {
            **asdict(request.model),
            "digest": subject.world.digest,
            "checkpoint": subject.folder.name,
            "reference": subject.reference(request.level).name,
            "level": request.level,
            "target": request.target,
            "asked": [*REPORTED, MAX_QUESTIONS],
            "attacks": [*ATTACKS, GENERATED] if attacked else [],
            **of_method(method),
        }


def ask(vlm: VLM, plan: EvalConfig) -> EvalOutputs:
    """All that there is to know under attack; else what the model answers and how probable that is, which is cheap."""
    if plan.attacks:
        return measure(vlm, plan)
    scores, asked = score_records(vlm, plan.records), EvalOutputs()
    for name in ("exact_match", "answer_probability"):
        asked.put(NO_ATTACK, name, dict(enumerate(getattr(scores, name).tolist())), len(plan.records))
    for name in NOT_ASKED:
        asked.put(NO_ATTACK, name, {}, len(plan.records))
    return asked


def packed(asked: EvalOutputs) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """As named arrays."""
    values = {"\t".join(("value", *key)): array for key, array in asked.values.items()}
    pairs = {
        f"membership\t{name}\t{side}": array
        for name, both in asked.membership.items()
        for side, array in enumerate(both)
    }
    return values | pairs


def unpacked(arrays: Mapping[str, Any], plan: EvalConfig) -> EvalOutputs:
    """What `packed` made arrays of, when asked by this plan."""
    values: dict[tuple[str, str], Any] = {}
    sides: dict[tuple[str, str], Any] = {}
    for name, array in arrays.items():
        kind, first, second = name.split("\t")
        (values if kind == "value" else sides)[first, second] = array
    pairs = {name: (sides[name, "0"], sides[name, "1"]) for name, _ in sides}
    others = never_trained(plan.records, plan.members, plan.unseen, plan.seed) if pairs else []
    return EvalOutputs(values, pairs, others)
