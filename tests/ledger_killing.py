"""Kills writers of one ledger over and over, at random moments, and looks at what is left. Prints one JSON object.

    python -m tests.ledger_killing FOLDER [--kills 200] [--writers 4] [--seed 0]

Each writer is a fork that adds entries as fast as it can, and notes each one that it was told is added. Half of them
write a few bytes at a time, so that many die in the middle of a line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chip.errors import ChipWarning
from chip.ledger import Ledger
from tests.ledgers import EDITED, FIRST, KEY, STEPS, write_ledger

LONGEST_LIFE = 0.3  # seconds between two kills
_FEW = 200  # bytes at a time


def write(path: Path, notes: Path, number: int) -> None:
    """Add entries of very different lengths until somebody kills this process."""
    warnings.simplefilter("ignore", ChipWarning)  # of a line that another one has left torn
    draw = random.Random(number)
    if number % 2:
        os.write = _few_bytes  # type: ignore[assignment]
    ledger = Ledger(path, KEY, by=f"writer {number}")
    with notes.open("ab", buffering=0) as told:
        while True:
            figures = {"figures": [draw.random() for _ in range(draw.choice((1, 20, 400)))]}
            entry = ledger.add([FIRST], replace(EDITED, figures=figures))
            _write(told.fileno(), f"{entry.digest}\n".encode())


_write = os.write


def _few_bytes(descriptor: int, content: memoryview) -> int:
    time.sleep(0.001)
    return _write(descriptor, content[:_FEW])


def start(path: Path, number: int) -> int:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        write(path, path.with_name(f"told-{number}"), number)
    return child


def kill_writers(path: Path, kills: int, writers: int, seed: int) -> None:
    """Let writers run and kill them one by one; for each one another starts."""
    draw = random.Random(seed)
    running = [start(path, number) for number in range(writers)]
    while not told_digests(path.parent):  # on a machine that is slow today
        time.sleep(0.01)
    for kill in range(kills):
        time.sleep(draw.uniform(0, LONGEST_LIFE))
        place = draw.randrange(writers)
        os.kill(running[place], signal.SIGKILL)
        os.waitpid(running[place], 0)
        running[place] = start(path, writers + kill)
    for child in running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def told_digests(folder: Path) -> Sequence[str]:
    """Of all entries that a writer was told are added; the last note of one that was killed may be cut short."""
    return [
        line for notes in folder.glob("told-*") for line in notes.read_text().split("\n") if len(line) == len(FIRST)
    ]


def look(path: Path, kills: int) -> dict[str, object]:
    """What is left, after one more entry."""
    told = told_digests(path.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChipWarning)
        Ledger(path, KEY).add([FIRST], EDITED)
    contents = Ledger(path, KEY).read()
    digests = {entry.digest for entry in contents.chain.entries}
    return {
        "kills": kills,
        "entries": len(digests),
        "told": len(told),
        "lost": len(set(told) - digests),
        "torn": len(list(path.parent.glob("*.torn-*"))),
        "notes": len(contents.chain.notes),
        "faults": contents.faults,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for name, default in (("kills", 200), ("writers", 4), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    path = write_ledger(given.folder / "ledger.jsonl", STEPS[:1]).path
    kill_writers(path, given.kills, given.writers, given.seed)
    print(json.dumps(look(path, given.kills)))


if __name__ == "__main__":
    main()
