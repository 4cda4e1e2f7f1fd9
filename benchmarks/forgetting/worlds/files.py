"""A world on disk: its records file and its pictures."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from benchmarks.forgetting.worlds.wording import rows
from benchmarks.forgetting.worlds.world import World, WorldSpec
from chip.data.record import LEVELS


def write(name: str, seed: int, spec: WorldSpec, folder: Path) -> World:
    """Write `records.jsonl` and `images/` into `folder`: the same bytes for the same seed."""
    pictures = {path: _png(picture) for path, picture in spec.pictures.items()}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for path, png in pictures.items():
        (folder / path).write_bytes(png)
    lines = _lines(rows(spec.facts, LEVELS))
    targets = {level: tuple("/".join(path) for path in paths) for level, paths in spec.targets.items()}
    world = World(name, seed, folder, _digest([lines, *pictures.values()]), spec.facts, targets)
    world.records_file.write_bytes(lines)
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
