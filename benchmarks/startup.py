"""How long the commands take that run no model, against the imports that they do without.

    python -m benchmarks.startup [--rounds 11] [--json FILE]

Whole processes on the demo, in turn: `--help` and `tree` against importing torch, `diff` and `verify`, which read the
checkpoints, against importing the class of transformers that loads a model.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import typer

import chip
from benchmarks.measuring import median_seconds, scratch_folder, seconds_of
from benchmarks.reporting import JsonFile, Rounds, Timing, report
from chip.demo import write_demo
from chip.methods import Shielded

TORCH = "import torch"
TRANSFORMERS = "from transformers import AutoModelForImageTextToText"
COMMANDS = {
    "chip --help": TORCH,
    "chip tree hospital": TORCH,
    "chip diff ckpt ckpt-edited": TRANSFORMERS,
    "chip verify ckpt-edited": TRANSFORMERS,
}
"""Command -> what it is compared with."""


def run(arguments: list[str], folder: Path) -> None:
    """A process of Python, which has to end well: `diff` with 1, as the folders differ."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True)
    if done.returncode != ("diff" in arguments):
        raise SystemExit(done.stderr.decode())


def main(rounds: Rounds = 11, json_file: JsonFile = None) -> None:
    """Measure all commands in turn."""
    with scratch_folder() as scratch:
        hospital = scratch / "hospital"
        write_demo(hospital)
        chip.edit(hospital / "ckpt", ["patient_17"], method=Shielded(retain_weight=8.0), device="cpu")
        runs = {}
        for command, imported in COMMANDS.items():
            folder = scratch if "hospital" in command else hospital
            runs[command] = partial(run, ["-m", *command.split()], folder)
            runs[f"{command}; baseline"] = partial(run, ["-c", imported], folder)
        seconds = median_seconds({name: partial(seconds_of, start) for name, start in runs.items()}, rounds)
    timings = [
        Timing(f"{command}; baseline: {imported}", seconds[command], seconds[f"{command}; baseline"], "s")
        for command, imported in COMMANDS.items()
    ]
    report("Starting", timings, "cpu", json_file)


if __name__ == "__main__":
    typer.run(main)
