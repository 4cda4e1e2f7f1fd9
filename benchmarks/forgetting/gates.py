"""Which models may be judged by: those that have learned their world. Asked once, and kept."""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.forgetting.models import Gate, gate
from benchmarks.forgetting.store import Store
from benchmarks.forgetting.subjects import Subject


def gate_of(subject: Subject, level: str, measure: bool = True) -> Gate | None:
    """What a model, and the one that was trained without a level's targets, know of their world.

    Args:
        measure: ask them, where that has not been done; without, None.
    """
    model, store = subject.model, Store("gates")
    what = {
        **asdict(model),
        "digest": subject.world.digest,
        "checkpoints": [subject.folder.name, subject.reference(level).name],
    }
    found = store.read(what)
    if found is None and measure:
        found = asdict(gate(subject.world, model.family, model.seed, subject.device, [level]))
        store.write(what, found)
    return None if found is None else Gate(**found)
