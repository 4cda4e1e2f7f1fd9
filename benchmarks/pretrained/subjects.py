"""The two models that are to forget: one that was taught patients, and one with what pretraining left it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.countries import TARGETS as COUNTRY_TARGETS
from benchmarks.countries import known_records
from benchmarks.forgetting.subjects import LoadedCheckpoint
from benchmarks.forgetting.worlds.world import World
from benchmarks.pretrained.general import GeneralAbility, pieces, real_texts, sampled_texts
from benchmarks.pretrained.training import Recipe, place, weights_digest
from benchmarks.pretrained.world import Size
from chip.checkpoint.folder import atomic_directory
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.record import FREE_TEXT, Record
from chip.data.request import ForgetRequest, Partition
from chip.errors import RunError
from chip.evaluation.groups import GENERAL, groups
from chip.model.loading import load_vlm

TAUGHT, BEFORE = "taught", "before fine-tuning"
"""Patients trained in with LoRA; countries, as the checkpoint knew them."""
LEVEL_BEFORE = "country"
OTHERS = 480
"""Records of others than target and siblings that are looked at, in all wordings."""
OTHER_GROUPS = ("ancestors", "cousins", "unrelated")
SEED = 0


@dataclass(frozen=True)
class Options:
    """What a run is about; the same in all of its processes."""

    checkpoint: Path
    cache: Path
    device: str
    size: Size = field(default_factory=Size)
    recipe: Recipe = field(default_factory=Recipe)
    texts: int = 120
    """Of each kind, to keep; as many are held out as `general.HELD_OUT`, or fewer."""
    questions: int = 64
    """Plain ones, at most."""
    trials: int = 3
    """Settings of a method that are tried."""
    tuning_steps: int | None = None
    """Steps of the methods by training, in the place of their own."""

    @property
    def texts_folder(self) -> Path:
        """Texts to keep, held-out text, and what the checkpoint knows of countries; made by `write_texts`."""
        return self.cache / f"texts-{weights_digest(self.checkpoint)[:16]}-{self.texts}"


def write_texts(options: Options) -> None:
    """Fill the folder of texts, where it is not there yet."""
    folder = options.texts_folder
    if folder.exists():
        return
    vlm = load_vlm(options.checkpoint, options.device)
    with atomic_directory(folder, overwrite=False) as written:
        written.mkdir(parents=True)
        held_out = max(2, options.texts // 4)
        sampled = list(islice(sampled_texts(vlm), options.texts + held_out))
        if len(sampled) < options.texts + held_out:
            raise RunError(f"{options.checkpoint}: only {len(sampled)} of the texts that it writes are plain English")
        kept = sampled[held_out:]
        letters = sum(map(len, kept)) // len(kept)  # of real text as much as of sampled
        _write_lines(written / "sampled.jsonl", ({"text": text} for text in kept))
        _write_lines(written / "held-out.jsonl", ({"text": text} for text in sampled[:held_out]))
        _write_lines(
            written / "real.jsonl", ({"text": text} for text in islice(pieces(real_texts(), letters), options.texts))
        )
        _write_lines(written / "records.jsonl", map(_row, known_records(vlm)))


def _row(record: Record) -> dict[str, str]:
    levels = dict(zip(("institution", "patient"), record.path, strict=True))
    return {**levels, "question": record.question, "answer": record.answer, "split": record.split}


def _write_lines(file: Path, rows: Iterable[Mapping[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class PretrainedSubject(LoadedCheckpoint):
    """A model with its records, and what is to be forgotten of them."""

    def __init__(
        self,
        name: str,
        folder: Path,
        records_file: Path,
        targets: Mapping[str, tuple[str, ...]],
        options: Options,
        references: Mapping[str, Path] | None = None,
        world: World | None = None,
    ) -> None:
        """
        Args:
            targets: level -> nodes to forget, one at a time.
            references: level -> the model that was trained without any of the level's targets.
            world: what the records are of, where they are of one.
        """
        super().__init__(options.device)
        self.name, self.records_file, self.targets, self.options = name, records_file, targets, options
        self.references, self._folder, self._world = references or {}, folder, world

    @cached_property
    def folder(self) -> Path:
        return self._folder

    @cached_property
    def records(self) -> tuple[Record, ...]:
        return tuple(read_records(self.records_file))

    def request(self, target: str, splits: Sequence[str]) -> ForgetRequest:
        """To forget the target; of the records those of these splits alone."""
        return ForgetRequest.of(Hierarchy([record for record in self.records if record.split in splits]), [target])

    def groups(self, target: str, splits: Callable[[Record], bool]) -> dict[str, list[int]]:
        """Group -> indices of records whose split it is: `target` (with a picture, where the model was taught),
        `by name` (the target's, in text only), `siblings`, `others`."""
        hierarchy = Hierarchy(self.records)
        node = hierarchy.find(target)
        partition = Partition.of(hierarchy, [node])
        found = groups(hierarchy, partition) if self._world is None else self._world.groups(node)
        by_name = [i for i in found["target"] if self.records[i].image is None and self._world is not None]
        parts: dict[str, Sequence[int]] = {
            "target": [i for i in found["target"] if i not in set(by_name)],
            "by name": by_name,
            "siblings": found["siblings"],
            "others": _some([i for name in OTHER_GROUPS for i in found[name]], OTHERS),
        }
        return {name: [i for i in indices if splits(self.records[i])] for name, indices in parts.items()}

    @cached_property
    def kept_texts(self) -> tuple[Record, ...]:
        """The sampled texts that an edit may keep."""
        texts = _texts(self.options.texts_folder / "sampled.jsonl")
        return tuple(Record(text, "", GENERAL.path, None, FREE_TEXT) for text in texts)

    @cached_property
    def general(self) -> GeneralAbility:
        held_out = _texts(self.options.texts_folder / "held-out.jsonl")
        return GeneralAbility(self.vlm, held_out, self.options.texts, self.options.questions)


def _texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def _some(indices: Sequence[int], most: int) -> list[int]:
    """A random part, of about so many."""
    return sorted(np.random.default_rng(SEED).permutation(indices)[:most].tolist())


def taught_folder(options: Options, world: World, level: str | None = None) -> Path:
    """Of the model that was taught the world, or all of it but a level's targets."""
    without = () if level is None else world.targets[level]
    return place(options.cache, options.checkpoint, world, options.recipe, without)


def taught(options: Options, world: World) -> PretrainedSubject:
    """The model that patients were trained into."""
    references = {level: taught_folder(options, world, level) for level in world.targets}
    folder = taught_folder(options, world)
    return PretrainedSubject(TAUGHT, folder, world.records_file, world.targets, options, references, world)


def before(options: Options) -> PretrainedSubject:
    """The checkpoint as it was given. Countries are asked about as it states them itself."""
    targets = {LEVEL_BEFORE: COUNTRY_TARGETS[: options.size.targets]}
    return PretrainedSubject(BEFORE, options.checkpoint, options.texts_folder / "records.jsonl", targets, options)
