"""Clocks, memory and processes: what the benchmarks measure with."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A temporary folder, by default below the system's own."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="chip-benchmark-") as folder:
        yield Path(folder)


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()


def seconds_of(run: Callable[[], object], device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that one run takes, from an idle device to an idle device."""
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def median_seconds(variants: Mapping[str, Callable[[], float]], rounds: int, most: float = inf) -> dict[str, float]:
    """Medians of what the variants return, which take turns: what disturbs one disturbs all.

    Args:
        most: seconds after which no further round begins.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    start = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() - start > most:
            break
        for name, measure in variants.items():
            times[name].append(measure())
    return {name: median(seconds) for name, seconds in times.items()}


def matmul_rate(
    device: str, dtype: torch.dtype, side: int, runs: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP/s of a large product of two (side, side) matrices; the best of some runs."""
    matrix = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / min(seconds_of(lambda: matrix @ matrix, device, clock) for _ in range(runs))


def peak_memory() -> float:
    """Of this process, in bytes. Linux's `getrusage` counts the parent's too, from before the start."""
    if Path("/proc/self/status").exists():
        return _from_status("VmHWM")
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def reset_peak_memory() -> None:
    """Forget the peak so far (Linux only)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_memory() -> float:
    """What this process holds now, in bytes (Linux only)."""
    return _from_status("VmRSS")


def _from_status(entry: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def in_own_process(module: str, *arguments: str) -> Any:
    """What `python -m benchmarks.MODULE` prints in its last line, as JSON."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])
