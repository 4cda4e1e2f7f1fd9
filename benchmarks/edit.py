"""How long `chip edit` takes to make the demo forget one patient, against an older checkout.

    python -m benchmarks.edit [--before PATH] [--rounds 5] [--device cpu] [--json FILE]

Whole processes, imports included, on two cores (where the system lets a process be bound to some). The checkouts take
turns; each edits a folder of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measuring import median_seconds, scratch_folder, seconds_of
from benchmarks.reporting import Device, JsonFile, Rounds, Timing, report
from chip.demo import write_demo

HERE = Path(__file__).parents[1]
TARGET = "patient_17"
CORES = 2


def run(checkout: Path, hospital: Path, device: str) -> None:
    """The command as this checkout has it."""
    command = [sys.executable, "-m", "chip", "edit", str(hospital / "ckpt"), "--forget", TARGET, "--overwrite"]
    threads = {name: str(CORES) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    subprocess.run(
        [*command, "--device", device],
        cwd=checkout,  # where `-m` looks first
        env={**os.environ, **threads, "PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
    )


def main(
    before: Annotated[Path | None, typer.Option(help="An older checkout, to compare with.")] = None,
    rounds: Rounds = 5,
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Measure the checkouts in turn."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-CORES:])  # the commands inherit it
    checkouts = {"ours": HERE, **({} if before is None else {"before": before.resolve()})}
    with scratch_folder() as scratch:
        runs = {}
        for name, checkout in checkouts.items():
            write_demo(scratch / name)
            runs[name] = partial(seconds_of, partial(run, checkout, scratch / name, device))
        seconds = median_seconds(runs, rounds)
    case = "edit of one patient in the demo, two cores" + ("" if before is None else "; baseline: the checkout before")
    report("Editing the demo", [Timing(case, seconds["ours"], seconds.get("before"), "s")], device, json_file)


if __name__ == "__main__":
    typer.run(main)
