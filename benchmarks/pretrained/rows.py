"""One way to forget one target: do it, read what was written, and ask."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import scratch_folder
from benchmarks.pretrained.subjects import PretrainedSubject
from benchmarks.pretrained.ways import WAYS, Edited
from chip.data.record import VALIDATION
from chip.errors import ChipError
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import score_records

TRAINED, PARAPHRASED = "trained", "paraphrased"
FAILED = "failed: "
"""How the reason begins where something broke, which another try may not."""


@dataclass(frozen=True)
class PretrainedRow:
    """What one way leaves of one target, and of everything else."""

    model: str
    """`TAUGHT` or `BEFORE`."""
    level: str
    target: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    refused: str | None = None
    """Why the command would not have written it; or, where there are no figures, why there is no edit."""
    seconds: float | None = None
    largest_change: float | None = None
    exact_match: Mapping[str, Mapping[str, float]] | None = None
    """Group -> `trained` or `paraphrased` -> mean."""
    probability: Mapping[str, Mapping[str, float]] | None = None
    """The same of the answers' probability, length-normalized."""
    general: Mapping[str, float] | None = None
    """As `GeneralAbility.measure` has it."""


def measure(
    subject: PretrainedSubject, level: str, target: str, method: str, folder: Path | None = None
) -> PretrainedRow | None:
    """The row; None where the model has no such line. `folder`: where it may write for a while."""
    where = (subject.name, level, target, method)
    with scratch_folder(folder) as scratch:
        try:
            edited = WAYS[method].run(subject, level, target, scratch)
        except ChipError as error:
            return PretrainedRow(*where, refused=str(error))
        if edited is None:
            return None
        return _asked(subject, where, edited)


def _asked(subject: PretrainedSubject, where: tuple[str, str, str, str], edited: Edited) -> PretrainedRow:
    vlm = subject.vlm if edited.folder == subject.folder else load_vlm(edited.folder, subject.device)
    exact, probability = answered(vlm, subject, where[2])
    general = subject.general.measure(vlm)
    del vlm
    _free(subject.vlm.device)
    cost = (edited.seconds, edited.largest_change)
    return PretrainedRow(*where, edited.settings, edited.refused, *cost, exact, probability, general)


def answered(
    vlm: VLM, subject: PretrainedSubject, target: str
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Exact match and answer probability, each by group and split; groups without a record are left out."""
    groups = subject.groups(target, lambda record: record.split != VALIDATION)
    asked = sorted({i for indices in groups.values() for i in indices})
    scores = score_records(vlm, [subject.records[i] for i in asked])
    result: tuple[dict[str, dict[str, float]], ...] = ({}, {})
    for values, means in zip((scores.exact_match, scores.answer_probability), result, strict=True):
        of_record = dict(zip(asked, values.tolist(), strict=True))
        for group, indices in groups.items():
            for split in (TRAINED, PARAPHRASED):
                of_split = [of_record[i] for i in indices if subject.records[i].held_out == (split == PARAPHRASED)]
                if of_split:
                    means.setdefault(group, {})[split] = sum(of_split) / len(of_split)
    return result[0], result[1]


def _free(device: torch.device) -> None:
    """Several processes share a GPU: what this one has let go is for the others."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
