"""Which models may be judged by: those that have learned their world. Asked once, and stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.forgetting.models import trained
from benchmarks.forgetting.store import Store
from benchmarks.forgetting.subjects import Subject
from benchmarks.forgetting.worlds import World
from chip.data.chance import mean_over
from chip.model.loading import load_vlm
from chip.model.scoring import score_records

LEARNED = {"train": 0.95, "rephrased": 0.9}
"""Split -> the share of its questions that a model must answer exactly: nobody forgets what was never known."""
MARGIN = 0.5
"""By so much, in exact match on each target, must a model beat one that was trained without the target."""


@dataclass(frozen=True)
class Gate:
    """Whether a model knows its world well enough that forgetting can be judged by it."""

    learned: Mapping[str, float]
    """Split -> exact match, over all records."""
    margins: Mapping[str, float]
    """Target -> exact match on what only the target knows, above that of the model trained without."""

    @property
    def faults(self) -> tuple[str, ...]:
        """What falls short, one line each."""
        return (
            *(
                f"{split} questions: {self.learned[split]:.3f} are answered, {least} must be"
                for split, least in LEARNED.items()
                if self.learned[split] < least
            ),
            *(
                f"{target}: answered by {margin:.3f} more than without it, {MARGIN} is the least"
                for target, margin in self.margins.items()
                if margin < MARGIN
            ),
        )


def gate(world: World, family: str, seed: int, device: str | None = None, levels: Sequence[str] | None = None) -> Gate:
    """Ask the trained model everything, and for each level the one that was trained without any of its targets.

    Args:
        levels: by default all that the world has.
    """
    indices = [number for number, record in enumerate(world.hierarchy.records) if record.split in LEARNED]
    known = _exact_match(world, indices, trained(world, family, seed, device=device), device)
    margins = {}
    for targets in (world.targets[level] for level in levels or world.targets):
        unknown = _exact_match(world, indices, trained(world, family, seed, targets, device), device)
        for target in targets:
            own = set(indices).intersection(world.groups(world.hierarchy.find(target))["target"])
            margins[target] = mean_over(known, own) - mean_over(unknown, own)
    by_split = {split: [i for i in indices if world.hierarchy.records[i].split == split] for split in LEARNED}
    return Gate({split: mean_over(known, of_split) for split, of_split in by_split.items()}, margins)


def _exact_match(world: World, indices: Sequence[int], checkpoint: Path, device: str | None) -> torch.Tensor:
    """(records,) fp64; NaN where not asked."""
    records = world.hierarchy.records
    result = torch.full((len(records),), torch.nan, dtype=torch.float64)
    result[list(indices)] = score_records(load_vlm(checkpoint, device), [records[i] for i in indices]).exact_match
    return result


def gate_of(subject: Subject, level: str, measure: bool = True) -> Gate | None:
    """What a model, and the one that was trained without a level's targets, know of their world.

    Args:
        measure: ask them, where that has not been done; without, None.
    """
    model, store = subject.model, Store("gates")
    key = {
        **model.key,
        "digest": subject.world.digest,
        "checkpoints": [subject.folder.name, subject.reference(level).name],
    }
    value = store.read(key)
    if value is None and measure:
        value = asdict(gate(subject.world, model.family, model.seed, subject.device, [level]))
        store.write(key, value)
    return None if value is None else Gate(**value)
