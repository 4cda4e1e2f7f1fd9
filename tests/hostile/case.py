"""One hostile input: what is done to a small checkpoint and its records, and how the command is to end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Harm = Callable[[Path], object]
"""Given the folder that holds `ckpt/`, `images/` and `records.jsonl`: spoils something there."""

TREE = ("tree", "records.jsonl", "--depth", "4")
INSPECT = ("inspect", "ckpt", "--json")
EDIT = (
    *("edit", "ckpt", "--forget", "patient_1", "--device", "cpu", "--retain-weight", "8", "--json"),
    *("--force", "--accept", "--max-left", "1"),  # the model is random: it knows no target
)
EVAL = ("eval", "ckpt", "--forget", "patient_1", "--device", "cpu", "--json")
DIFF = ("diff", "ckpt", "other", "--json")
VERIFY = ("verify", "edited", "--json")

ROW = 4
"""Index of the record that is spoiled: one of the target's, about its image."""
WHERE = f"records.jsonl:{ROW + 1}"
IMAGE = "images/study_1.png"
"""The picture of the target."""


@dataclass(frozen=True)
class Case:
    """One input.

    Of `edit`, a dry run is to end as the real one: it is run first, and where it refuses, so must the other, with the
    same line.
    """

    name: str
    harm: Harm
    says: str
    """Regular expression found in the line that refuses; of an input that is not refused, it says nothing."""
    run: Sequence[str] = EDIT
    may_pass: bool = False
    """Exit code 0 with the right values is as good."""
    must_pass: bool = False
    family: str = "llava"
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.run[0]}: {self.name}"


def refused(name: str, harm: Harm, says: str, run: Sequence[str] = EDIT, **more: Any) -> Case:
    """It ends in one line that `says` is found in."""
    return Case(name, harm, says, run, **more)


def passes(name: str, harm: Harm, run: Sequence[str] = EDIT, **more: Any) -> Case:
    """It does no harm."""
    return Case(name, harm, "", run, may_pass=True, must_pass=True, **more)


def either(name: str, harm: Harm, says: str, run: Sequence[str] = EDIT, **more: Any) -> Case:
    """It may be taken, if the values are right, or refused in one line that `says` is found in."""
    return Case(name, harm, says, run, may_pass=True, **more)


# ---------------------------------------------------------------- harms


def nothing(_: Path) -> None:
    """What is hostile is on the command line."""


def record(**fields: Any) -> Harm:
    """Other values for some keys of a record; `...` takes a key away."""

    def harm(folder: Path) -> None:
        lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
        entry = json.loads(lines[ROW]) | fields
        lines[ROW] = json.dumps({key: value for key, value in entry.items() if value is not ...})
        (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return harm


def every_record(**fields: Any) -> Harm:
    """The same of all records that have the keys, as `old -> new`."""

    def harm(folder: Path) -> None:
        file = folder / "records.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            for key, renamed in fields.items():
                if row.get(key) in renamed:
                    row[key] = renamed[row[key]]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    return harm


def line(content: bytes, index: int = ROW) -> Harm:
    """Other bytes in the place of a record."""

    def harm(folder: Path) -> None:
        lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
        lines[index] = content + b"\n"
        (folder / "records.jsonl").write_bytes(b"".join(lines))

    return harm


def put(name: str, keys: str, value: Any) -> Harm:
    """Another value in a JSON file, at the place that `keys` leads to, with dots between them; `...` takes it away."""

    def harm(folder: Path) -> None:
        file = folder / name
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        holder = content
        *above, last = keys.split(".")
        for key in above:
            holder = holder[int(key) if isinstance(holder, list) else key]
        place = int(last) if isinstance(holder, list) else last
        if value is ...:
            holder.pop(place, None)
        else:
            holder[place] = value
        file.write_text(json.dumps(content), encoding="utf-8")

    return harm


def write(name: str, content: bytes | str | Callable[[], bytes]) -> Harm:
    """A file of this content, in the place of one that may be there; what takes long to make is made when needed."""

    def harm(folder: Path) -> None:
        made = content() if callable(content) else content
        (folder / name).write_bytes(made if isinstance(made, bytes) else made.encode())

    return harm


def shorten(name: str, share: float) -> Harm:
    """The file's first bytes only."""

    def harm(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return harm


def remove(name: str) -> Harm:
    return lambda folder: (folder / name).unlink()


def sparse(name: str, size: int) -> Harm:
    """A file of so many bytes, none of which is on the disk."""

    def harm(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return harm


def both(*harms: Harm) -> Harm:
    def harm(folder: Path) -> None:
        for one in harms:
            one(folder)

    return harm


def instead(name: str, make: Callable[[Path], object]) -> Harm:
    """Something else under the name of a file."""

    def harm(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return harm


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a circle": lambda path: path.symlink_to(path.name),
}
"""What may stand in a file's place."""
