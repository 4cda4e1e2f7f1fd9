"""A small hospital and a small model that knows it, to try things on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import Image

from chip.demo.images import draw
from chip.demo.world import SEED, places, rows
from chip.errors import InputError, one_line

WEIGHTS = Path(__file__).parent / "weights"


def write_records(folder: Path, seed: int = SEED) -> Path:
    """Write `records.jsonl` and `images/` into `folder`; returns the records file."""
    _write(folder, dict(_records(seed)))
    return folder / "records.jsonl"


def write_demo(folder: Path, overwrite: bool = False) -> None:
    """Write the hospital: `ckpt/`, `records.jsonl` and `images/`.

    With `overwrite`, what is missing of it is written. A file that is in its place, and not of the hospital, stays.

    Raises:
        InputError: the folder holds something already, and `overwrite` is not asked for, or a file or link of somebody
            else is in the way; or it cannot be written. Nothing of somebody else's has been written to.
    """
    files = {f"ckpt/{path.name}": path.read_bytes() for path in WEIGHTS.iterdir()} | dict(_records(SEED))
    try:
        if folder.exists() and any(folder.iterdir()):
            if not overwrite:
                raise InputError(f"{folder}: not empty; name another folder, or pass --overwrite")
            files = {name: content for name, content in files.items() if not _is_there(folder, name, content)}
        _write(folder, files)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({one_line(error)}); name another folder") from error


@cache
def _records(seed: int) -> tuple[tuple[str, bytes], ...]:
    """Name of each image and of the records file, and what is in it."""
    return tuple(_drawn(seed))


def _drawn(seed: int) -> Iterator[tuple[str, bytes]]:
    for place in places(seed):
        encoded = io.BytesIO()
        draw(place.path, seed).save(encoded, Path(place.image).suffix[1:])
        yield place.image, encoded.getvalue()
    yield "records.jsonl", "".join(json.dumps(row) + "\n" for row in rows(seed)).encode()


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _is_there(folder: Path, name: str, content: bytes) -> bool:
    """Whether a former demo has written the file.

    Raises:
        InputError: somebody else has, or its folder is a link to somewhere else.
    """
    path = folder / name
    for step in (folder / name.partition("/")[0], path):
        if step.is_symlink():
            raise InputError(f"{step}: a link, which no demo has written; name another folder, or move it away")
    if not path.exists():
        return False
    if not path.is_file() or not _is_same(path.read_bytes(), content):
        raise InputError(f"{path}: not what the demo writes there; name another folder, or move it away")
    return True


def _is_same(stored: bytes, content: bytes) -> bool:
    """Whether two files hold the same; of images, the pixels count: a library encodes them as its version does."""
    if stored == content:
        return True
    try:
        with Image.open(io.BytesIO(stored)) as a, Image.open(io.BytesIO(content)) as b:
            return (a.mode, a.size) == (b.mode, b.size) and a.tobytes() == b.tobytes()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # no image
        return False
