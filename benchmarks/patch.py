"""How long it takes to write an edited checkpoint, and in how much memory.

    python -m benchmarks.patch [--gigabytes 4] [--rounds 5] [--folder DIR] [--device cpu] [--json FILE]

A random sharded bf16 checkpoint of a Qwen2.5-VL is made, and 3 % of its tensors changed in these ways, in turn, each in
a process of its own:

- cp: `cp -r` of the folder, the least that a whole copy can cost;
- chip: `copy_patched` and the rename; then, timed apart, the read-back of every byte;
- chip, linked: the same with `link_unchanged`;
- save_file: `safe_open` and `save_file`, shard by shard;
- save_pretrained: `from_pretrained`, the changes, `save_pretrained`.

The changed tensors lie in as few shards as can be; with one in every shard, links save nothing. Everything is flushed
to the disk before the clock stops. Memory is the peak of the process, imports included.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.checkpoints import write_checkpoint
from benchmarks.measuring import in_own_process, peak_memory, scratch_folder, seconds_of
from benchmarks.qwen import Shape, VisionShape
from benchmarks.reporting import Device, JsonFile, Rounds, Timing, report
from chip.checkpoint.folder import atomic_directory, flush
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.read_back import read_back
from chip.checkpoint.writer import check_written, copy_patched

SHARDS = 8
CHANGED = 0.03
HIDDEN = 2048
VOCABULARY = 152_000

Writer = Callable[[Checkpoint, Path, str], dict[str, float]]
"""Writes an edited copy to a path, with new values from a device; returns seconds by phase."""


def make_checkpoint(folder: Path, gigabytes: float, hidden: int) -> None:
    """A Qwen2.5-VL with random weights and as many layers as the size takes, in bf16."""
    heads = max(2, hidden // 128)
    layer = 2.5 * hidden**2 + 3 * hidden * 4 * hidden  # values: attention with a quarter of key-value heads, and MLP
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * VOCABULARY * hidden) / layer))
    shape = Shape(
        layers, hidden, 4 * hidden, heads, max(1, heads // 4), VOCABULARY, VisionShape(4, hidden // 4, hidden // 2, 8)
    )
    write_checkpoint(folder, shape, shard_bytes=round(gigabytes * 1e9 / SHARDS))


class Changes(Mapping[str, Tensor]):
    """MLP matrices plus one, from as few shards as hold them, made when they are read: nothing is held."""

    def __init__(self, source: Checkpoint, device: str) -> None:
        mlp = [name for name in source.entries if ".mlp." in name and "language_model" in name]
        in_shard = Counter(source.entries[name].shard for name in mlp)
        mlp.sort(key=lambda name: (-in_shard[source.entries[name].shard], source.entries[name].shard, name))
        self._names = mlp[: round(CHANGED * len(source.entries))]
        self._source, self._device = source, device

    def __getitem__(self, name: str) -> Tensor:
        return self._source.read(name).to(self._device).add_(1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def by_cp(source: Checkpoint, output: Path, _: str) -> dict[str, float]:
    def copy() -> None:
        subprocess.run(["cp", "-r", source.folder, output], check=True)
        flush(output)

    return {"write": seconds_of(copy)}


def by_chip(source: Checkpoint, output: Path, device: str, link_unchanged: bool = False) -> dict[str, float]:
    changes = Changes(source, device)
    start = time.perf_counter()
    with atomic_directory(output) as folder:
        copy_patched(source, folder, changes, link_unchanged=link_unchanged)
    written = time.perf_counter()
    check_written(source, output, changes)
    read_back(source, output, changes.keys())
    return {"write": written - start, "read back": time.perf_counter() - written}


def by_save_file(source: Checkpoint, output: Path, device: str) -> dict[str, float]:
    from safetensors import safe_open
    from safetensors.torch import save_file

    changes = Changes(source, device)

    def write() -> None:
        output.mkdir()
        for shard in source.shards:
            with safe_open(source.folder / shard, "pt") as file:
                names = file.keys()
                tensors = {name: changes[name].cpu() if name in changes else file.get_tensor(name) for name in names}
                save_file(tensors, output / shard, metadata=file.metadata())
        for file in source.folder.glob("*.json"):
            shutil.copy(file, output)
        flush(output)

    return {"write": seconds_of(write)}


def by_save_pretrained(source: Checkpoint, output: Path, device: str) -> dict[str, float]:
    import transformers

    changes = Changes(source, device)

    def write() -> None:
        model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(source.folder, dtype=torch.bfloat16)
        with torch.no_grad():
            for name, new in changes.items():
                model.get_parameter(name).copy_(new)
        model.save_pretrained(output, max_shard_size="1GB")
        flush(output)

    return {"write": seconds_of(write)}


WRITERS: dict[str, Writer] = {
    "cp": by_cp,
    "chip": by_chip,
    "chip, linked": partial(by_chip, link_unchanged=True),
    "save_file": by_save_file,
    "save_pretrained": by_save_pretrained,
}
OTHERS = ("cp", "save_file", "save_pretrained")


def run_writer(name: str, source: Path, output: Path, device: str) -> dict[str, float]:
    """In a process of its own: seconds by phase, and the peak memory in bytes."""
    os.sync()  # what was written before is not part of it
    arguments = ("--writer", name, "--folder", str(source), "--device", device, "--output", str(output))
    phases: dict[str, float] = in_own_process("patch", *arguments)
    shutil.rmtree(output)
    return phases


def print_phases(name: str, source: Path, output: Path, device: str) -> None:
    """In the process of its own: print what was measured."""
    logging.disable(logging.WARNING)
    phases = WRITERS[name](Checkpoint.open(source), output, device)
    print(json.dumps({**phases, "peak": peak_memory()}))


def timings_of(typical: Callable[[str, str], float]) -> list[Timing]:
    """The rows of the table, from the median of each writer's phase."""
    against = [
        Timing(f"{ours} against {name}", typical(ours, "write"), typical(name, "write"), "s")
        for ours in ("chip", "chip, linked")
        for name in OTHERS
    ]
    read_back = [
        Timing(f"{ours}: read-back", typical(ours, "read back"), None, "s") for ours in ("chip", "chip, linked")
    ]
    memory = [
        Timing(f"peak memory against {name}", typical("chip", "peak") / 1e6, typical(name, "peak") / 1e6, "MB")
        for name in ("save_file", "save_pretrained")
    ]
    return [*against, *read_back, *memory]


def describe(source: Checkpoint, rounds: int) -> str:
    """How large the checkpoint is, and how much of it is changed."""
    sizes = {name: entry.end - entry.begin for name, entry in source.entries.items()}
    changes = Changes(source, "cpu")
    shards = {source.entries[name].shard for name in changes}
    return (
        f"{sum(sizes.values()) / 1e9:.2f} GB in {len(source.shards)} shards; {len(changes)} of {len(sizes)} tensors "
        f"changed, in {len(shards)} of the shards; the largest {max(sizes[name] for name in changes) / 1e6:.0f} MB; "
        f"medians of {rounds} runs"
    )


def main(
    gigabytes: Annotated[float, typer.Option(help="Size of the checkpoint.")] = 4.0,
    hidden: Annotated[int, typer.Option(help="Width of its text model.")] = HIDDEN,
    rounds: Rounds = 5,
    folder: Annotated[
        Path | None, typer.Option(help="Where to work; by default the system's temporary folder.")
    ] = None,
    device: Device = "cpu",
    json_file: JsonFile = None,
    writer: Annotated[str | None, typer.Option(hidden=True)] = None,
    output: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure all writers in turn."""
    if writer is not None and folder is not None and output is not None:
        print_phases(writer, folder, output, device)
        return
    with scratch_folder(folder) as scratch:
        source = scratch / "source"
        make_checkpoint(source, gigabytes, hidden)
        runs = [{name: run_writer(name, source, scratch / "out", device) for name in WRITERS} for _ in range(rounds)]
        Console(width=120).print(describe(Checkpoint.open(source), rounds))
    timings = timings_of(lambda name, phase: median(run[name][phase] for run in runs))
    report("Writing an edited checkpoint", timings, device, json_file)


if __name__ == "__main__":
    typer.run(main)
