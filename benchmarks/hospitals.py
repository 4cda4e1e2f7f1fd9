"""Hospitals like the demo's, of any size, and checkpoints of small models that have learned one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.forgetting.families import Family
from benchmarks.forgetting.models import texts_of, untrained, write_model
from chip.checkpoint.folder import atomic_directory
from chip.data.readers import read_records
from chip.data.record import Record
from chip.demo.images import draw
from chip.demo.kinds import Kind
from chip.demo.world import hospital_tree, places_of, rows_of
from chip.model.loading import VLM


def write_hospital(folder: Path, sizes: tuple[int, int, int], kinds: Sequence[Sequence[Kind]], seed: int) -> Path:
    """A records file, and a picture of every node beside it; returns the file. What is there already stays.

    Args:
        sizes: institutions, patients of each, and studies of each patient.
        kinds: of the facts about an institution, a patient and a study.
    """
    if not folder.exists():
        rng = np.random.default_rng(seed)
        levels = zip(hospital_tree(*sizes), kinds, strict=True)
        places = [place for paths, own in levels for place in places_of(paths, own, rng)]
        with atomic_directory(folder) as written:
            (written / "images").mkdir(parents=True)
            for place in places:
                draw(place.path, seed).save(written / place.image)
            lines = (json.dumps(row) + "\n" for row in rows_of(places, sections=False))
            (written / "records.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "records.jsonl"


def write_learned(
    folder: Path, records_file: Path, family: Family, seed: int, learn: Callable[[VLM, list[Record]], object]
) -> Path:
    """The checkpoint of a model that was trained on the records' trained wordings by `learn`; returns the folder. What
    is there already stays."""
    if not folder.exists():
        records = read_records(records_file)
        texts = texts_of(records)
        vlm = untrained(texts, family, seed, "cpu")
        learn(vlm, [record for record in records if not record.held_out])
        write_model(vlm, texts, family, folder)
    return folder
