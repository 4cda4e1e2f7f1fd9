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
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.rows import row, show, store
from chip.checkpoint.folder import atomic_directory, flush
from chip.checkpoint.layout import INDEX, Checkpoint
from chip.checkpoint.read_back import read_back
from chip.checkpoint.writer import check_written, copy_patched

SHARDS = 8
CHANGED = 0.03
HIDDEN = 2048

Way = Callable[[Checkpoint, Path, str], dict[str, float]]
"""Writes an edited copy to a path, with new values from a device; returns seconds by phase."""


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """A Qwen2.5-VL with random weights and as many layers as the size takes, in bf16."""
    import transformers

    def build(layers: int) -> Any:
        config = transformers.Qwen2_5_VLConfig(
            architectures=["Qwen2_5_VLForConditionalGeneration"],
            text_config={
                "hidden_size": HIDDEN,
                "intermediate_size": 4 * HIDDEN,
                "num_hidden_layers": layers,
                "num_attention_heads": 16,
                "num_key_value_heads": 4,
                "vocab_size": 152_000,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            },
            vision_config={"depth": 4, "hidden_size": 512, "num_heads": 8, "out_hidden_size": HIDDEN},
            tie_word_embeddings=False,
            dtype="bfloat16",
        )
        with torch.device("meta"):
            return transformers.Qwen2_5_VLForConditionalGeneration(config)

    one, two = (sum(p.numel() for p in build(layers).parameters()) for layers in (1, 2))
    model = build(1 + max(1, round((gigabytes * 1e9 / 2 - one) / (two - one))))
    model.config.save_pretrained(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    block = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    limit = math.ceil(sum(map(math.prod, shapes.values())) / SHARDS)
    weight_map: dict[str, str] = {}
    shard: dict[str, tuple[int, ...]] = {}
    names = list(shapes)
    for number, name in enumerate(names):
        shard[name] = shapes[name]
        if sum(map(math.prod, shard.values())) >= limit or number == len(names) - 1:
            file = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
            weight_map |= dict.fromkeys(shard, file)
            _write_shard(folder / file, shard, block)
            shard = {}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _write_shard(path: Path, shapes: Mapping[str, tuple[int, ...]], block: Tensor) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps({**header, "__metadata__": {"format": "pt"}}).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            rest = math.prod(shape)
            while rest:
                count = min(rest, len(block))
                file.write(block[:count].view(torch.uint8).numpy().data)
                rest -= count


class Changes(Mapping[str, Tensor]):
    """MLP matrices plus one, from as few shards as hold them, made when they are asked for: nothing is held."""

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
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source.folder, output], check=True)
    flush(output)
    return {"write": time.perf_counter() - start}


def by_chip(source: Checkpoint, output: Path, device: str, link_unchanged: bool = False) -> dict[str, float]:
    changes = Changes(source, device)
    start = time.perf_counter()
    with atomic_directory(output) as folder:
        copy_patched(source, folder, changes, link_unchanged=link_unchanged)
    written = time.perf_counter()
    check_written(source, output, changes)
    read_back(source, output, changes.keys())
    return {"write": written - start, "read back": time.perf_counter() - written}


def by_chip_linked(source: Checkpoint, output: Path, device: str) -> dict[str, float]:
    return by_chip(source, output, device, link_unchanged=True)


def by_save_file(source: Checkpoint, output: Path, device: str) -> dict[str, float]:
    from safetensors import safe_open
    from safetensors.torch import save_file

    changes = Changes(source, device)
    start = time.perf_counter()
    output.mkdir()
    for shard in source.shards:
        with safe_open(source.folder / shard, "pt") as file:
            names = file.keys()
            tensors = {name: changes[name].cpu() if name in changes else file.get_tensor(name) for name in names}
            save_file(tensors, output / shard, metadata=file.metadata())
    for file in source.folder.glob("*.json"):
        shutil.copy(file, output)
    flush(output)
    return {"write": time.perf_counter() - start}


def by_save_pretrained(source: Checkpoint, output: Path, device: str) -> dict[str, float]:
    import transformers

    changes = Changes(source, device)
    start = time.perf_counter()
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(source.folder, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, new in changes.items():
            model.get_parameter(name).copy_(new)
    model.save_pretrained(output, max_shard_size="1GB")
    flush(output)
    return {"write": time.perf_counter() - start}


WAYS: dict[str, Way] = {
    "cp": by_cp,
    "chip": by_chip,
    "chip, linked": by_chip_linked,
    "save_file": by_save_file,
    "save_pretrained": by_save_pretrained,
}


def in_own_process(way: str, source: Path, output: Path, device: str) -> dict[str, float]:
    """Seconds by phase, and the peak memory in bytes."""
    command = [sys.executable, "-m", "benchmarks.patch", "--way", way, "--folder", str(source), "--device", device]
    os.sync()  # what was written before is not part of it
    done = subprocess.run([*command, "--output", str(output)], check=True, capture_output=True, text=True)
    shutil.rmtree(output)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(way: str, source: Path, output: Path, device: str) -> None:
    """In the process of its own: print what was measured."""
    import logging

    logging.disable(logging.WARNING)
    found = WAYS[way](Checkpoint.open(source), output, device)
    print(json.dumps({**found, "peak": peak_memory()}))


def peak_memory() -> float:
    """Of this process, in bytes. Linux's `getrusage` counts the parent's too, from before the start."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main(
    gigabytes: Annotated[float, typer.Option(help="Size of the checkpoint.")] = 4.0,
    rounds: Annotated[int, typer.Option(help="Runs of each way; medians are reported.")] = 5,
    folder: Annotated[
        Path | None, typer.Option(help="Where to work; by default the system's temporary folder.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the new values are.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the rows go.")] = None,
    way: Annotated[str | None, typer.Option(hidden=True)] = None,
    output: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure all ways in turn."""
    if way is not None and folder is not None and output is not None:
        measure(way, folder, output, device)
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix="chip-benchmark-") as scratch:
        source = Path(scratch) / "source"
        make_checkpoint(source, gigabytes)
        checkpoint = Checkpoint.open(source)
        changes = Changes(checkpoint, "cpu")
        touched = {checkpoint.entries[name].shard for name in changes}
        largest = max(checkpoint.entries[name].end - checkpoint.entries[name].begin for name in changes)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
        for _ in range(rounds):
            for name in WAYS:
                found[name].append(in_own_process(name, source, Path(scratch) / "out", device))

    def typical(name: str, phase: str = "write") -> float:
        return median(each[phase] for each in found[name])

    rows = [
        *(
            row(f"chip against {name}", typical("chip"), typical(name), "s", device)
            for name in WAYS
            if "chip" not in name
        ),
        *(
            row(f"chip, linked, against {name}", typical("chip, linked"), typical(name), "s", device)
            for name in WAYS
            if "chip" not in name
        ),
        row("chip: read-back", typical("chip", "read back"), None, "s", device),
        row("chip, linked: read-back", typical("chip, linked", "read back"), None, "s", device),
        *(
            row(f"peak memory against {name}", typical("chip", "peak") / 1e6, typical(name, "peak") / 1e6, "MB", device)
            for name in ("save_file", "save_pretrained")
        ),
    ]
    size = sum(entry.end - entry.begin for entry in checkpoint.entries.values())
    Console(width=120).print(
        f"{size / 1e9:.2f} GB in {len(checkpoint.shards)} shards; {len(changes)} of {len(checkpoint.entries)} tensors "
        f"changed, in {len(touched)} of the shards; the largest {largest / 1e6:.0f} MB; medians of {rounds} runs"
    )
    show("Writing an edited checkpoint", rows)
    store(json_file, rows)


if __name__ == "__main__":
    typer.run(main)
