"""The lines of the table: `chip edit` with and without what protects a pretrained model, and the other methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import chip
from benchmarks.forgetting.methods import METHODS, BenchmarkMethod, measured
from benchmarks.forgetting.methods.controls import Control
from benchmarks.forgetting.methods.edits import ShieldedEdit
from benchmarks.pretrained.ablations import ShieldedWithSinks
from benchmarks.pretrained.subjects import PretrainedSubject
from benchmarks.pretrained.tuning import LEARNED, TUNED, tuned
from benchmarks.reporting import largest_change
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import write_patched
from chip.errors import ChipError, RunError
from chip.methods import DEFAULT, GatedText, Shielded, ShieldedGatedText
from chip.methods.base import Method
from chip.methods.shielded_gated import ShieldedGated

UNTOUCHED, RETRAINED, OUR = "untouched", "retrained", "chip edit"
LINEAR, GATES = f"{OUR}, linear edit alone", f"{OUR}, gates in text alone"
NO_TEXT: tuple[Path, ...] = ()
"""What `chip.edit` takes for: keep nothing but the records."""
CONTROLLED = 96.0
"""Retain weight of the edit that the controls are of: about what is found where texts are kept."""


@dataclass(frozen=True)
class Edited:
    """What a way of forgetting has written."""

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    """Of the edit; None where there is none."""
    largest_change: float | None = None
    """‖W′ − W‖ / ‖W‖ of a tensor, the largest."""
    refused: str | None = None
    """Why `chip edit` would not have written this."""


class Way(Protocol):
    """One line of the table."""

    def run(self, subject: PretrainedSubject, level: str, target: str, scratch: Path) -> Edited | None:
        """Forget the target; None where there is no such thing.

        Raises:
            ChipError: the edit failed.
        """


class Reference:
    """A model that nothing is done to: the subject's own, or the one that was trained without."""

    def __init__(self, retrained: bool) -> None:
        self._retrained = retrained

    def run(self, subject: PretrainedSubject, level: str, target: str, scratch: Path) -> Edited | None:
        folder = subject.references.get(level) if self._retrained else subject.folder
        return None if folder is None else Edited(folder)


@dataclass(frozen=True)
class ChipWay:
    """`chip.edit`. Where it refuses, the weakest edit that its search may choose is written and measured all the same:
    what would it have cost?"""

    method: Method = field(default_factory=Shielded)
    keep: str | None = None
    """A file of `Options.texts_folder`; empty: nothing, whatever `chip.edit` takes by default. None: its default."""

    def run(self, subject: PretrainedSubject, level: str, target: str, scratch: Path) -> Edited | None:
        try:
            return self._edit(subject, target, scratch, self.method, None)
        except ChipError as error:
            if self.method.search is None:
                raise
            weakest = self.method.resolve_search(self.method.search.grid[-1])
            return self._edit(subject, target, scratch, weakest, str(error))

    def _edit(
        self, subject: PretrainedSubject, target: str, scratch: Path, method: Method, refused: str | None
    ) -> Edited:
        report = chip.edit(
            subject.folder,
            [target],
            records=subject.records_file,
            out=scratch / "edited",
            method=method,
            device=subject.device,
            overwrite=True,
            accept=True,
            **self._texts(subject),
        )
        try:
            report.outcome.check_kept()
        except RunError as error:
            refused = str(error)
        change = largest_change(report.relative_change)
        return Edited(scratch / "edited", report.settings, report.seconds, change, refused)

    def _texts(self, subject: PretrainedSubject) -> dict[str, Any]:
        if self.keep is None:
            return {}
        return {"keep": [subject.options.texts_folder / self.keep] if self.keep else NO_TEXT}


@dataclass(frozen=True)
class MethodWay:
    """A method of the comparison, with the best of its settings."""

    kind: type[BenchmarkMethod]

    def run(self, subject: PretrainedSubject, level: str, target: str, scratch: Path) -> Edited | None:
        method, request = tuned(self.kind, subject), subject.request(target, (*LEARNED, *TUNED))
        if isinstance(method, Control):  # of our edit with text to keep, where there may be none without
            request = replace(request, general=subject.kept_texts)
            method = replace(method, like=ShieldedEdit(retain_weight=CONTROLLED))
        applied = measured(method, subject.vlm, subject.source, request, seed=0)
        write_patched(subject.source, scratch / "edited", applied.tensors, overwrite=True)
        change = largest_change(relative_change(subject.source, applied.tensors))
        return Edited(scratch / "edited", method.settings, applied.seconds, change)


def relative_change(source: Checkpoint, tensors: Mapping[str, Any]) -> dict[str, float]:
    """‖W′ − W‖ / ‖W‖ (Frobenius) by tensor."""
    originals = {name: source.read(name).double() for name in tensors}
    return {name: float((tensors[name].double() - old).norm() / old.norm()) for name, old in originals.items()}


REFERENCES: Mapping[str, Way] = {UNTOUCHED: Reference(False), RETRAINED: Reference(True)}
OURS: Mapping[str, Way] = {
    OUR: ChipWay(DEFAULT()),
    f"{OUR}, linear edit and gates in text": ChipWay(ShieldedGatedText()),
    LINEAR: ChipWay(),
    GATES: ChipWay(GatedText()),
    f"{OUR}, gates at the connector": ChipWay(ShieldedGated()),
    f"{LINEAR}, keep sampled text": ChipWay(keep="sampled.jsonl"),
}
ABLATIONS: Mapping[str, Way] = {
    f"{LINEAR}, keep real text": ChipWay(keep="real.jsonl"),
    f"{LINEAR}, keep nothing": ChipWay(keep=""),
    f"{LINEAR}, sinks as any token": ChipWay(ShieldedWithSinks(), keep="sampled.jsonl"),
    f"{LINEAR}, sinks as any token, keep nothing": ChipWay(ShieldedWithSinks(), keep=""),
}
COMPARED: Mapping[str, Way] = {
    name: MethodWay(kind) for name, kind in METHODS.items() if not issubclass(kind, ShieldedEdit)
}
WAYS: Mapping[str, Way] = {**REFERENCES, **OURS, **ABLATIONS, **COMPARED}
"""In the order of the table. A new line is one entry here."""
