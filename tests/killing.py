"""Kills an edit over and over, each time at another moment, and looks at what is left. Prints one JSON object.

    python -m tests.killing FOLDER [--kills 29] [--overwrite]

FOLDER holds `ckpt/` and `records.jsonl`. Each edit runs in a fork of this process, which has all modules loaded, so
that it takes half a second. Some are killed when a given time has passed, some before a given step that concerns the
output folder: a file opened, made, renamed or removed.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

import chip
from chip.methods import Shielded
from tests.families import UNTRAINED
from tests.folders import contents

LOADED = ("chip.editing", "transformers.models.llava.modeling_llava")  # before the first fork, not in each
WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "fcntl.flock")


def edit(folder: Path, overwrite: bool) -> None:
    chip.edit(
        folder / "ckpt",
        ["patient_1"],
        out=folder / "out",
        method=Shielded(retain_weight=8.0),
        device="cpu",
        **UNTRAINED,
        overwrite=overwrite,
        link_unchanged=True,
    )


def in_fork(job: Callable[[], object]) -> str | None:
    """What `job` returns, as text; None if it was killed. This process itself runs no torch: its threads would not
    live on in the forks."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(writer, str(job()).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        result = pipe.read()
    if os.WIFSIGNALED(status):
        return None
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError("it failed by itself")
    return result


def run(folder: Path, overwrite: bool, after: float | None = None, step: int | None = None) -> int:
    """Edit, unless killed before; how many steps it took."""
    taken = _count_steps(folder, step)
    if after is not None:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    edit(folder, overwrite)
    return taken[0]


def _count_steps(folder: Path, last: int | None) -> list[int]:
    """Counts the steps of this process from now on; kills it before the one after `last`."""
    taken = [0]
    own = (str(folder / "out"), str(folder / ".out.chip"))

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in WATCHED and (event == "fcntl.flock" or str(args[0]).startswith(own)):
            if taken[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            taken[0] += 1

    sys.addaudithook(hook)
    return taken


def look(folder: Path, source: dict[str, bytes], old: dict[str, bytes] | None) -> str:
    """What a killed run has left: `absent`, `whole` or what is wrong."""
    if contents(folder / "ckpt") != source:
        return "the source has changed"
    if rest := {path.name for path in folder.iterdir()} - {"ckpt", "images", "records.jsonl", "out", ".out.chip"}:
        return f"left behind: {rest}"
    if not (folder / "out").exists():
        return "absent"
    if old is not None and contents(folder / "out") == old:
        return "old"
    faults = in_fork(partial(faults_of, folder))
    return "whole" if faults == "()" else str(faults)


def faults_of(folder: Path) -> tuple[str, ...]:
    return chip.verify(folder / "out", folder / "ckpt").faults


def refusal(folder: Path) -> str:
    try:
        edit(folder, overwrite=True)
    except chip.InputError as error:
        return str(error)
    return ""


def clean(folder: Path) -> bool:
    """Whether a second run works, and leaves nothing of the first; where that was between two renames, once one has
    done what the second says."""
    if (folder / ".out.chip" / "old").exists() and not (folder / "out").exists():
        told = in_fork(partial(refusal, folder)) or ""
        if f"{folder / '.out.chip' / 'new'}, whole, what it had written" not in told:
            return False
        (folder / ".out.chip" / "new").rename(folder / "out")
        shutil.rmtree(folder / ".out.chip")
        if in_fork(partial(faults_of, folder)) != "()":
            return False
    in_fork(partial(run, folder, (folder / "out").exists()))
    names = {path.name for path in folder.iterdir()}
    return names == {"ckpt", "images", "records.jsonl", "out"} and in_fork(partial(faults_of, folder)) == "()"


def moments(kills: int, seconds: float, steps: int) -> Iterator[tuple[float | None, int | None]]:
    """When to kill: seconds after the start, or the step before which. A few by time come too late."""
    spread = kills // 3
    yield from ((seconds * k / spread, None) for k in range(spread))
    yield from ((None, round(steps * k / spread)) for k in range(spread))
    yield from ((None, steps - k) for k in range(kills - 2 * spread, 0, -1))


def timed(folder: Path, overwrite: bool) -> tuple[float, int]:
    """Seconds and steps of an edit that nobody kills."""
    start = time.monotonic()
    steps = in_fork(partial(run, folder, overwrite))
    return time.monotonic() - start, int(steps or 0)


def main(folder: Path, kills: int, overwrite: bool) -> None:
    torch.set_num_threads(1)
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # else the collector of each fork goes through all that this process has, and so copies it
    source = contents(folder / "ckpt")
    outcomes, cleaned = [], []
    with tempfile.TemporaryDirectory() as kept:
        first, _ = timed(folder, overwrite=False)
        whole = shutil.copytree(folder / "out", Path(kept) / "out")
        if not overwrite:
            shutil.rmtree(folder / "out")
        second, steps = timed(folder, overwrite)
        for after, step in moments(kills, min(first, second), steps):
            shutil.rmtree(folder / "out", ignore_errors=True)
            if overwrite:
                shutil.copytree(whole, folder / "out")
            killed = in_fork(partial(run, folder, overwrite, after, step)) is None
            outcomes.append((killed, look(folder, source, contents(whole) if overwrite else None)))
            if len(outcomes) % min(6, kills) == 0:
                cleaned.append(clean(folder))
            shutil.rmtree(folder / ".out.chip", ignore_errors=True)
    print(json.dumps({"outcomes": outcomes, "cleaned": cleaned}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=29)
    parser.add_argument("--overwrite", action="store_true")
    main(**vars(parser.parse_args()))
