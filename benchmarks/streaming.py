"""What it costs to read each layer when its turn comes, against a model that is all in memory.

    python -m benchmarks.streaming [--size 0.5B|7B] [--images 16] [--layers all] [--streamed-only] [--json FILE]

The checkpoint is that of `benchmarks.large`. Each variant runs in a process of its own: one pass of all questions, and
one over the stages with all that is solved and changed at each; the retain weight is given. Beside the seconds, what
each pass reads as a share of all weights, and what the process allocates at most: hidden states in memory among it, and
mapped files left out. Seconds of the processor stand next to what the products that a pass cannot do without would take
(`benchmarks.large.Work`), in fp32 and for solves in fp64, at the rates of one large product in the same process.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.checkpoints import QUESTIONS_PER_IMAGE, write_checkpoint, write_records
from benchmarks.large import RETAIN_WEIGHT, SHAPES, TARGET, work_of
from benchmarks.measuring import in_own_process, matmul_rate, scratch_folder
from benchmarks.qwen import MERGE, PATCH, Shape
from benchmarks.reporting import JsonFile, Timing, report
from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.request import ForgetRequest
from chip.distributed import DistributedContext
from chip.methods import Shielded
from chip.methods.apply import default_modules, edit_stages
from chip.methods.patch import WeightEditor
from chip.methods.source import StatisticsSource
from chip.model.batching.batch_size import BatchSize
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import score_records
from chip.model.weight_stream import WeightStream

RECORDS_A_BATCH = 32
VARIANTS = ("streamed", "in memory")
PASSES = ("editing", "asking")


class OwnMemory:
    """The most that this process has allocated so far, in bytes, looked at every so often (Linux only)."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.peak = 0.0
        self._seconds, self._stopped = seconds, threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._seconds):
            (kilobytes,) = re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
            self.peak = max(self.peak, 1024 * float(kilobytes))


def measure(folder: Path, streamed: bool, layers: str, shape: Shape, side: int) -> dict[str, float]:
    """Seconds of an edit and of asking, bytes that each read, and peaks; nothing is written."""
    source, records = Checkpoint.open(folder / "ckpt"), read_records(folder / "records.jsonl")
    vlm = load_vlm(source.folder, "cpu", stream=streamed)
    vlm.shares_images  # noqa: B018 - measured once a model, and not what this is about
    method, size = Shielded(retain_weight=RETAIN_WEIGHT), BatchSize(RECORDS_A_BATCH)
    request = ForgetRequest.of(Hierarchy(records), [TARGET])
    modules = default_modules(vlm, method, layers=layers)
    distributed, memory = DistributedContext(), OwnMemory()
    with memory.watched():
        asking = _timed(vlm, lambda: score_records(vlm, records, size))
        source_of = StatisticsSource(vlm, method, request, modules, size, distributed)
        editor = WeightEditor(vlm, source, modules, distributed)
        editing = _timed(vlm, lambda: edit_stages(method, source_of, editor))
    image_tokens, rate = (side // (PATCH * MERGE)) ** 2, _rates(min(4096, 2 * shape.mlp))
    edited = sorted({module.layer for module in modules if module.layer is not None})
    whole, part = (work_of(folder, shape, image_tokens, each) for each in (range(shape.layers), edited))
    floor = {
        "asking": whole.passing / rate[torch.float32],
        "editing": (part.passing + part.grams) / rate[torch.float32] + part.solving / rate[torch.float64],
    }
    found = {
        f"{what} {name}": value
        for name, each in zip(PASSES, (editing, asking), strict=True)
        for what, value in each.items()
    }
    return found | {f"floor {name}": seconds for name, seconds in floor.items()} | {"peak": memory.peak}


def _rates(side: int) -> dict[torch.dtype, float]:
    dtypes = (torch.float32, torch.float64)
    return {dtype: matmul_rate("cpu", dtype, side, 3, time.process_time) for dtype in dtypes}


def _timed(vlm: VLM, run: Callable[[], object]) -> dict[str, float]:
    """Seconds as they pass and of the processor, and bytes of weights that were read."""
    before, start, started = _read(vlm), time.perf_counter(), time.process_time()
    run()
    seconds, processor = time.perf_counter() - start, time.process_time() - started
    return {"seconds": seconds, "processor": processor, "read": _read(vlm) - before}


def _read(vlm: VLM) -> float:
    return vlm.stream.bytes_read if isinstance(vlm.stream, WeightStream) else 0


def main(
    size: Annotated[str, typer.Option(help=f"{', '.join(SHAPES)}.")] = "0.5B",
    images: Annotated[int, typer.Option(min=8, help="Scans, with 8 questions each.")] = 16,
    side: Annotated[int, typer.Option(help="Pixels along a side of a scan.")] = 448,
    layers: Annotated[str, typer.Option(help="Which to edit, as `chip edit` has it.")] = "all",
    streamed_only: Annotated[bool, typer.Option("--streamed-only", help="The model does not fit into memory.")] = False,
    variant: Annotated[str | None, typer.Option(hidden=True)] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to work; by default the temporary folder.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Make a checkpoint, and edit it both ways."""
    if variant is not None:
        assert folder is not None
        print(json.dumps(measure(folder, variant == VARIANTS[0], layers, SHAPES[size], side)))
        return
    with scratch_folder(folder) as scratch:
        write_checkpoint(scratch / "ckpt", SHAPES[size])
        write_records(scratch, images, side)
        entries = Checkpoint.open(scratch / "ckpt").entries.values()
        weights = sum(entry.end - entry.begin for entry in entries)
        arguments = ("--folder", str(scratch), "--layers", layers, "--size", size, "--side", str(side))
        variants = VARIANTS[: 1 if streamed_only else 2]
        found = {name: in_own_process("streaming", "--variant", name, *arguments) for name in variants}
    report(
        "Streaming weights from the disk",
        timings(found, weights, f"{size}, {images * QUESTIONS_PER_IMAGE} records"),
        "cpu",
        json_file,
    )


def timings(found: Mapping[str, Mapping[str, float]], weights: int, name: str) -> list[Timing]:
    """Rows of the two variants. `weights`: bytes of all."""
    ours, theirs = found[VARIANTS[0]], found.get(VARIANTS[1], {})
    rows = [Timing(f"{name}: {what}", ours[f"seconds {what}"], theirs.get(f"seconds {what}"), "s") for what in PASSES]
    for what in PASSES:
        seconds = ours[f"processor {what}"]
        share = ours[f"floor {what}"] / seconds
        rows.append(Timing(f"{name}: {what}, processor", seconds, theirs.get(f"processor {what}"), "s", share))
    rows += [Timing(f"{name}: weights read, {what}", ours[f"read {what}"] / weights, None, "of all") for what in PASSES]
    gigabytes = {variant: each["peak"] / 1e9 for variant, each in found.items()}
    return [*rows, Timing(f"{name}: peak memory", gigabytes[VARIANTS[0]], gigabytes.get(VARIANTS[1]), "GB")]


if __name__ == "__main__":
    typer.run(main)
