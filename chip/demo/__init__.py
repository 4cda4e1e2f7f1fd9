"""A small hospital and a small model that knows it, to try things on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from chip.demo.images import draw
from chip.demo.world import SEED, places, rows
from chip.errors import InputError

WEIGHTS = Path(__file__).parent / "weights"


def write_records(folder: Path, seed: int = SEED) -> Path:
    """Write `records.jsonl` and `images/` into `folder`; returns the records file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for place in places(seed):
        draw(place.path, seed).save(folder / place.image)
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(seed)), encoding="utf-8")
    return file


def write_demo(folder: Path, overwrite: bool = False) -> None:
    """Write the hospital: `ckpt/`, `records.jsonl` and `images/`.

    Raises:
        InputError: the folder holds something already, and `overwrite` is not asked for.
    """
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: not empty; name another folder, or pass --overwrite")
    shutil.copytree(WEIGHTS, folder / "ckpt", dirs_exist_ok=True)
    write_records(folder)
