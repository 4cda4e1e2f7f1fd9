"""One patient forgotten by a model of real size, end to end: time by phase, memory, and how near it is to the ceiling.

    python -m benchmarks.large [--size 0.5B|7B] [--records 512] [--device cpu] [--folder DIR] [--json FILE]

The checkpoint has the shapes of Qwen2.5-VL-7B, or of a text model of 0.5 B with a smaller vision tower, and random
weights in bf16. A scan has 289 image tokens and 8 questions. The retain weight is given: to find one is to ask
questions, and to hold the statistics of all modules, where else each one's go when it is solved.

The ceiling is what the products that an edit cannot do without (`Work`) would take at the rate of one large product,
measured in the same run: once with everything at the rate of the dtype that the model runs in, once with Gram matrices
and solves at the rates of the dtypes that they are computed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

import chip
from benchmarks.checkpoints import QUESTIONS_PER_IMAGE, conversation, write_checkpoint, write_records
from benchmarks.measuring import matmul_rate, peak_memory, scratch_folder, seconds_of, synchronize
from benchmarks.qwen import MERGE, PATCH, Shape, VisionShape
from benchmarks.reporting import JsonFile, Timing, report
from chip.data.readers import read_records
from chip.methods import Shielded
from chip.model.loading import default_device
from chip.model.processors import load_processor
from chip.model.target_modules import layer_range

SHAPES = {
    "0.5B": Shape(24, 896, 4864, 14, 2, 151_936, VisionShape(12, 512, 1368, 8)),
    "7B": Shape(28, 3584, 18_944, 28, 4, 152_064, VisionShape(32, 1280, 3420, 16)),
    "7B, 4 layers": Shape(4, 3584, 18_944, 28, 4, 152_064, VisionShape(32, 1280, 3420, 16)),
    "tiny": Shape(4, 64, 96, 2, 2, 2048, VisionShape(4, 64, 128, 2)),
}
SIDE = 476  # pixels: 17 × 17 image tokens
PATCH_VALUES = 3 * 2 * PATCH**2  # a still picture is taken as two frames
WINDOW = 64  # patches that see each other in most of the vision tower's layers
FULL_ATTENTION = 4  # of its layers: all patches see each other
TARGET = "patient_1"
RETAIN_WEIGHT = 8.0
PHASES = ("asking before", "editing", "writing", "asking after", "reading back")


@dataclass(frozen=True)
class Work:
    """FLOPs of the matrix products that an edit cannot do without; a product (a, b) × (b, c) has 2abc.

    Embeddings, norms, and products with one small side are left out.
    """

    passing: float
    """Each token once through vision tower, connector and the layers up to the last edited one."""
    grams: float
    """Σ x xᵀ of each edited layer's input, half of it: it is symmetric."""
    solving: float
    """For each edited layer W B, the Cholesky factor of K, and the two triangular solves."""

    @property
    def total(self) -> float:
        return self.passing + self.grams + self.solving


def work(
    shape: Shape,
    layers: int,
    image_tokens: int,
    before: int,
    questions: Sequence[Sequence[int]],
    edited: int | None = None,
) -> Work:
    """What `shielded` has to compute with the connector and the first `layers` layers' `down_proj` edited.

    Args:
        edited: as many of these layers; by default all.
        before: tokens in front of the image.
        questions: for each image, the number of tokens of each of its questions, with answer, behind the image.
    """
    width = MERGE**2 * shape.vision.hidden  # of what the connector takes
    edited = layers if edited is None else edited
    tokens = sum(before + image_tokens + sum(lengths) for lengths in questions)
    image_inputs = len(questions) * image_tokens
    text = sum(_through_layer(shape, before + image_tokens, lengths) for lengths in questions)
    return Work(
        passing=len(questions) * _through_vision(shape, image_tokens) + layers * text,
        grams=2 * image_inputs * width**2 + edited * tokens * shape.mlp**2,
        solving=_solve(width, width) + _solve(width, shape.hidden) + edited * _solve(shape.mlp, shape.hidden),
    )


def _through_layer(shape: Shape, shared: int, questions: Sequence[int]) -> float:
    """One image and its questions, each of which sees what they share, and itself."""
    key_value = shape.hidden * shape.key_value_heads // shape.heads
    weights = shape.hidden * (2 * shape.hidden + 2 * key_value + 3 * shape.mlp)
    pairs = shared**2 / 2 + sum(length * shared + length**2 / 2 for length in questions)
    return 2 * weights * (shared + sum(questions)) + 4 * shape.hidden * pairs


def _through_vision(shape: Shape, image_tokens: int) -> float:
    vision, patches = shape.vision, MERGE**2 * image_tokens
    weights = vision.depth * vision.hidden * (4 * vision.hidden + 3 * vision.mlp) + PATCH_VALUES * vision.hidden
    pairs = FULL_ATTENTION * patches**2 + (vision.depth - FULL_ATTENTION) * patches * min(WINDOW, patches)
    width = MERGE**2 * vision.hidden
    connector = width * (width + shape.hidden)
    return 2 * weights * patches + 4 * vision.hidden * pairs + 2 * connector * image_tokens


def _solve(d_in: int, d_out: int) -> float:
    return d_in**3 / 3 + 4 * d_out * d_in**2


def work_of(folder: Path, shape: Shape, image_tokens: int, layers: Sequence[int]) -> Work:
    """Of an edit of the connector and these layers, by the lengths of the records in `folder`."""
    processor = load_processor(folder / "ckpt")
    lengths: dict[object, list[int]] = {}
    before = 0
    for record in read_records(folder / "records.jsonl"):
        tokens = processor.tokenizer(conversation(processor, record))["input_ids"]
        before = tokens.index(processor.image_token_id)
        lengths.setdefault(record.image, []).append(len(tokens) - before - 1)
    return work(shape, max(layers) + 1, image_tokens, before, list(lengths.values()), len(layers))


class Stopwatch:
    """A `progress` that notes the seconds of each phase."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, what: str, _: int) -> Iterator[Callable[[int], None]]:
        start = time.perf_counter()
        yield lambda _: None
        synchronize(self._device)
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start


def measure(folder: Path, shape: Shape, image_tokens: int, name: str, device: str) -> list[Timing]:
    """Edit the checkpoint in `folder`: seconds, memory, and how near the edit is to the ceiling."""
    watch, method = Stopwatch(device), Shielded(retain_weight=RETAIN_WEIGHT)
    layers = layer_range(Shielded.layers, shape.layers)
    total = seconds_of(
        lambda: chip.edit(folder / "ckpt", [TARGET], method=method, device=device, force=True, progress=watch), device
    )
    timings = [Timing(f"{name}: {phase}", watch.seconds[phase], None, "s") for phase in PHASES]
    timings += [
        Timing(f"{name}: loading twice, and all else", total - sum(watch.seconds.values()), None, "s"),
        Timing(f"{name}: in all", total, None, "s"),
        *_next_to_ceiling(work_of(folder, shape, image_tokens, layers), watch.seconds["editing"], name, device),
        Timing(f"{name}: peak memory of the host", peak_memory() / 1e9, None, "GB"),
    ]
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated()
        timings.append(Timing(f"{name}: peak memory of the device", peak / 1e9, None, "GB"))
    return timings


def _next_to_ceiling(needed: Work, editing: float, name: str, device: str) -> list[Timing]:
    side = 8192 if device.startswith("cuda") else 2048
    model, gram = torch.float32 if device == "cpu" else torch.bfloat16, torch.float32
    solve = torch.float32 if device == "mps" else torch.float64
    rate = {dtype: matmul_rate(device, dtype, side, runs=6) for dtype in {model, gram, solve}}
    by_part = needed.passing / rate[model] + needed.grams / rate[gram] + needed.solving / rate[solve]
    case = f"{name}: editing, ceiling"
    return [
        Timing(f"{case} {rate[model] / 1e12:.3g} TFLOP/s", editing, None, "s", needed.total / rate[model] / editing),
        Timing(f"{case} by the dtype of each part", editing, None, "s", by_part / editing),
    ]


def main(
    size: Annotated[str, typer.Option(help=f"{', '.join(SHAPES)}.")] = "0.5B",
    records: Annotated[int, typer.Option(min=128, help="Questions, 8 an image.")] = 512,
    side: Annotated[int, typer.Option(help="Pixels along a side of a scan.")] = SIDE,
    device: Annotated[str | None, typer.Option(help="By default a GPU, if there is one.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to work; by default the system's temporary folder.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Make a checkpoint, and edit it."""
    place = device or default_device()
    with scratch_folder(folder) as scratch:
        write_checkpoint(scratch / "ckpt", SHAPES[size], place)
        write_records(scratch, records // QUESTIONS_PER_IMAGE, side)
        image_tokens = (side // (PATCH * MERGE)) ** 2
        timings = measure(scratch, SHAPES[size], image_tokens, f"{size}, {records} records", place)
    report("Editing a large model", timings, place, json_file)


if __name__ == "__main__":
    typer.run(main)
