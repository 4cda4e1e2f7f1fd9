"""A world on disk: the project's records file, MedForget's parquet files, and small pictures."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.forgetting.worlds.wording import Fact, rows
from benchmarks.forgetting.worlds.world import EvalConfig, World
from chip.data.record import LEVELS

_MEDFORGET = ("institution_id", "patient_id", "study_id", "section_name")  # as `LEVELS`


def write(name: str, seed: int, plan: EvalConfig, folder: Path) -> World:
    """Write the world into `folder`: the same bytes for the same seed.

    `records.jsonl`, `corrections.jsonl` and `images/`; and for each level `medforget/LEVEL/{forget,retain}.parquet`,
    with the questions that are trained on, since nothing there says which ones are held out.
    """
    pictures = {path: _png(picture) for path, picture in plan.pictures.items()}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for path, png in pictures.items():
        (folder / path).write_bytes(png)
    targets = {level: tuple("/".join(path) for path in paths) for level, paths in plan.targets.items()}
    digest = _digest([_lines(rows(plan.facts, LEVELS)), *pictures.values()])
    world = World(name, seed, folder, digest, plan.facts, targets)
    world.records_file.write_bytes(_lines(rows(plan.facts, LEVELS)))
    corrected = [replace(fact, value=fact.truth) for fact in plan.facts if fact.truth is not None]
    world.corrections_file.write_bytes(_lines({**row, "split": "corrected"} for row in rows(corrected, LEVELS)))
    for level, paths in plan.targets.items():
        _write_medforget(folder / "medforget" / level, plan.facts, pictures, paths)
    return world


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _lines(entries: Iterable[Mapping[str, str]]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def _write_medforget(
    folder: Path, facts: Sequence[Fact], pictures: Mapping[str, bytes], targets: Sequence[tuple[str, ...]]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    forget = [fact for fact in facts if any(fact.path[: len(target)] == target for target in targets)]
    gone = set(forget)
    for name, some in (("forget", forget), ("retain", [fact for fact in facts if fact not in gone])):
        pq.write_table(pa.Table.from_pylist(_medforget_rows(some, pictures)), folder / f"{name}.parquet")


def _medforget_rows(facts: Iterable[Fact], pictures: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """One row for each node and picture, with all its questions."""
    together: dict[tuple[tuple[str, ...], str], list[Fact]] = {}
    for fact in facts:
        together.setdefault((fact.path, fact.image), []).append(fact)
    return [
        {
            "image": {"bytes": pictures[image], "path": image},
            "image_path": image,
            "metadata": json.dumps(
                [
                    {"Question": row["question"], "Answer": row["answer"]}
                    for row in rows(some, LEVELS)
                    if row["split"] == "train"
                ]
            ),
            "hierarchy_metadata": json.dumps(
                {**dict(zip(_MEDFORGET, path, strict=False)), "hierarchy_level": LEVELS[len(path) - 1]}
            ),
            "ID": f"{'/'.join(path)}:{Path(image).stem}",
        }
        for (path, image), some in together.items()
    ]
