"""One `down_proj` of a very large model: its statistics, its solve, and its new weights on the disk, in little memory.

    python -m benchmarks.one_layer [--size 7B|72B] [--tokens 8192] [--json FILE]

The module has the shape that it has in Qwen2.5; weights and what comes in are random. What a pass through a model adds
is measured by `benchmarks.streaming`. Seconds are of the processor where there is one thread, which then do not count
what other processes took. The ceiling is what the products of `Work` would take at the rate of one large product in the
dtype that each is computed in, measured in the same run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.kernel_cases import MODELS
from benchmarks.measuring import matmul_rate, peak_memory, scratch_folder
from benchmarks.projection import TINY, clock_of
from benchmarks.reporting import JsonFile, Timing, report
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import round_once, write_patched
from chip.data.hierarchy import Hierarchy
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.kernels.solve import Check
from chip.methods import Shielded
from chip.methods.shielded_statistics import ShieldedStatistics
from chip.model.tokens import SegmentRecords, TokenRole, Tokens

NAME = "model.layers.0.mlp.down_proj.weight"
LAYERS = {"3B": 36, "7B": 28, "32B": 64, "72B": 80, "tiny": 4}
SHAPES = MODELS | TINY
RECORDS = 8  # of as many patients; one is the target
BATCH = 2048
CHECKED_ROWS = 256  # of the sum, that are looked at in fp64
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
    """FLOPs that the layer cannot do without."""

    grams: float
    """In fp32: half of Σ x xᵀ."""
    solving: float
    """In fp64: W E_f[x xᵀ], the Cholesky factor of K, and the two triangular solves."""

    @classmethod
    def of(cls, d_out: int, d_in: int, tokens: int) -> Work:
        return cls(1.0 * tokens * d_in**2, d_in**3 / 3 + 4.0 * d_out * d_in**2)


def request() -> ForgetRequest:
    """Of one patient, among text-only records of some institutions."""
    paths = [(f"institution_{number // 4}", f"patient_{number}") for number in range(RECORDS)]
    records = [
        Record(f"What is shown of {path[1]}?", f"finding {number}", path, None) for number, path in enumerate(paths)
    ]
    return ForgetRequest.of(Hierarchy(records), ["patient_0"])


def batches(d_in: int, count: int) -> Iterator[Tokens]:
    """What comes into a gated MLP's last map, each record with as many tokens as any other."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(d_in, generator=generator).exp()
    owners = SegmentRecords(torch.arange(RECORDS), torch.arange(RECORDS), RECORDS)
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        gate, up = torch.randn(2, size, d_in, generator=generator)
        records = torch.arange(size) % RECORDS
        yield Tokens(
            inputs=torch.nn.functional.silu(gate).mul_(up).mul_(scale),
            outputs=None,
            ids=torch.randint(0, 300, (size,), generator=generator),
            roles=torch.where(torch.arange(size) // RECORDS % 2 == 1, TokenRole.ANSWER, TokenRole.QUESTION),
            segments=records,
            owners=owners,
            starts=torch.zeros(size, dtype=torch.bool),
        )


class Clock:
    """Seconds of each part: of the processor, and as they pass."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.passed: dict[str, float] = {}
        self._clock = clock_of("cpu")

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start, started = self._clock(), time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - start
        self.passed[name] = self.passed.get(name, 0.0) + time.perf_counter() - started


def write_source(folder: Path, d_out: int, d_in: int) -> Checkpoint:
    """A checkpoint of this one weight."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    weight = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    save_file({NAME: weight.mul_(d_in**-0.5).bfloat16()}, folder / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint.open(folder)


def measure(folder: Path, d_out: int, d_in: int, tokens: int) -> tuple[Clock, float, float]:
    """Seconds, the relative residual, and the error of the sum: against fp64, relative (Frobenius)."""
    source, clock, method = write_source(folder / "ckpt", d_out, d_in), Clock(), Shielded(retain_weight=8.0)
    weights = method.record_weights(request(), CPU)
    statistics, residuals = method.statistics(weights, d_in, d_out), list[float]()
    exact = torch.zeros(CHECKED_ROWS, d_in, dtype=torch.float64)
    for batch in batches(d_in, tokens):
        with clock.part("statistics"):
            statistics.update(batch)
        shield = batch.weights(weights.of_records)[:, 2].double()
        exact += (batch.inputs[:, :CHECKED_ROWS].double() * shield[:, None]).T @ batch.inputs.double()
    with clock.part("statistics"):
        total = statistics.shield.total  # with the tokens that still wait
    error = float(
        torch.linalg.norm(total.panels[0][:CHECKED_ROWS].triu() - exact.triu()) / torch.linalg.norm(exact.triu())
    )
    del exact, total

    with patch.object(Check, "residual", _recording(Check.residual, residuals)), clock.part("solve"):
        new = _solved(method, source.read(NAME), statistics, source.entries[NAME].torch_dtype)
    del statistics
    with clock.part("write"):
        write_patched(source, folder / "out", {NAME: new})
    return clock, max(residuals), error


def _solved(method: Shielded, weight: Tensor, statistics: ShieldedStatistics, dtype: torch.dtype) -> Tensor:
    update = method.solve(weight, None, statistics)
    assert update is not None
    return round_once(update.weight, dtype)


def _recording(residual: Callable[..., float], seen: list[float]) -> Callable[..., float]:
    def wrapped(*arguments: object) -> float:
        seen.append(residual(*arguments))
        return seen[-1]

    return wrapped


def rows(size: str, tokens: int, clock: Clock, residual: float, error: float) -> list[Timing]:
    """What was measured, next to the ceiling."""
    d_out, d_in = SHAPES[size]
    work = Work.of(d_out, d_in, tokens)
    side = min(4096, 2 * d_in)
    rate = {dtype: matmul_rate("cpu", dtype, side, 4, clock_of("cpu")) for dtype in (torch.float32, torch.float64)}
    ceilings = {"statistics": work.grams / rate[torch.float32], "solve": work.solving / rate[torch.float64]}
    case = f"{size} down_proj, {d_out:,} × {d_in:,}, {tokens:,} tokens"
    timings = [
        Timing(f"{case}: {part}", seconds, None, "s", ceilings[part] / seconds if part in ceilings else None)
        for part, seconds in clock.seconds.items()
    ]
    total = sum(clock.seconds.values())
    return [
        *timings,
        Timing(f"{case}: in all, as time passed", sum(clock.passed.values()), None, "s"),
        Timing(f"{case}: peak memory", peak_memory() / 1e9, None, "GB"),
        Timing(f"{case}: relative residual", residual, None, "1"),
        Timing(f"{case}: error of the second moment, against fp64", error, None, "1"),
        Timing(f"{size}, {LAYERS[size]} layers: that often, extrapolated", LAYERS[size] * total / 3600, None, "h"),
        *(Timing(f"product in {str(dtype)[6:]}", value / 1e9, None, "GFLOP/s") for dtype, value in rate.items()),
    ]


def main(
    size: Annotated[str, typer.Option(help=f"{', '.join(LAYERS)}.")] = "7B",
    tokens: Annotated[int, typer.Option(min=64, help="That pass through the layer.")] = 8192,
    folder: Annotated[Path | None, typer.Option(help="Where to work; by default the temporary folder.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure one layer."""
    with scratch_folder(folder) as scratch:
        clock, residual, error = measure(scratch, *SHAPES[size], tokens)
    report("One layer of a large model", rows(size, tokens, clock, residual, error), "cpu", json_file)


if __name__ == "__main__":
    typer.run(main)
