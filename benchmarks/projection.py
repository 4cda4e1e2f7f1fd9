"""How fast the linear algebra is, kernel by kernel, and how near to what the device can do.

    python -m benchmarks.projection [--rounds 5] [--device cpu] [--json FILE] [--picture FILE] [--quick]

Shapes are those of the MLPs of Qwen2.5 models. Each kernel runs in turn with a plain form of the same, and medians are
reported; with one thread, of CPU time:

- rows: W_S ← (I − Q Qᵀ) W_S in bf16, S a tenth of the rows, at rank 16 against the dense projector P W_S;
- Gram: total += xᵀ x for 1024 tokens, against `x.T @ x`;
- ridge: X with X K = B, against `torch.linalg.cholesky` and `cholesky_solve`; both look at the residual;
- basis: leading right singular vectors, against `torch.linalg.svd` in fp32.

The ceiling of a kernel is the roofline: the rate of one large product in the dtype that it computes in, or the rate of
a copy times its FLOPs per byte, whichever is lower. Only what cannot be left out is counted: bytes that must be read
and written once, half of a symmetric product, 9 m³ for the eigenvectors of an m × m matrix.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.kernel_cases import (
    ENERGY,
    MODELS,
    SHARE_OF_ROWS,
    KernelCase,
    Run,
    all_cases,
    dense_projector,
    random_basis,
    random_directions,
    random_rows,
    random_weight,
)
from benchmarks.measuring import matmul_rate, median_seconds, seconds_of
from benchmarks.reporting import Device, JsonFile, Rounds, Timing, device_name, report
from benchmarks.roofline import Ceilings, Point, draw
from chip.kernels.gram import accumulation_dtype
from chip.kernels.subspace import leading_basis, project_rows_

SECONDS = {"cpu": 30.0}
"""What all runs of one case may take at the ceiling; elsewhere a minute."""
MEMORY = {"cpu": 8e9}
"""What one case may take; elsewhere most of what is free."""
TINY = {"tiny": (64, 256)}


def clock_of(device: str) -> Callable[[], float]:
    """On a CPU with one thread that thread's own clock, which stands still while another process has the core."""
    return time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def paired(ours: Run, plain: Run | None, device: str, rounds: int) -> tuple[float, float | None]:
    """Median seconds, in turn: what disturbs the one disturbs the other."""
    runs = {"ours": ours} if plain is None else {"ours": ours, "plain": plain}
    for run in runs.values():  # the first run allocates
        run()
    clocked = {name: partial(seconds_of, run, device, clock_of(device)) for name, run in runs.items()}
    seconds = median_seconds(clocked, rounds)
    return seconds["ours"], seconds.get("plain")


def measure_ceilings(device: str, tiny: bool) -> Ceilings:
    """The best of a few: a ceiling is what nothing disturbs."""
    small, clock = device == "cpu", clock_of(device)
    size = 1 << (20 if tiny else 28 if small else 31)
    source, target = torch.ones(2, size, dtype=torch.uint8, device=device)
    copy = 2 * source.numel() / min(seconds_of(lambda: target.copy_(source), device, clock) for _ in range(9))
    side = 512 if tiny else 4096 if small else 8192
    dtypes = {torch.bfloat16, torch.float32, accumulation_dtype(torch.device(device))}
    return Ceilings(copy, {dtype: matmul_rate(device, dtype, side, runs=4, clock=clock) for dtype in dtypes})


def why_not(case: KernelCase, ceilings: Ceilings, device: str, rounds: int) -> str | None:
    """What forbids to run it here."""
    memory = MEMORY[device] if device in MEMORY else 0.9 * torch.cuda.mem_get_info()[0] if "cuda" in device else 1e10
    if case.memory > memory:
        return f"{case.memory / 1e9:.0f} GB"
    needed = (rounds + 1) * (case.flops + case.plain_flops) / ceilings.rate[case.dtype]
    return f"{needed:.0f} s" if needed > SECONDS.get(device, 60.0) else None


def accuracy(device: str, hidden: int, inside: int) -> list[Timing]:
    """Against fp64, in one case each."""
    return [_accuracy_of_rows(device, hidden, inside), _accuracy_of_basis(device, inside)]


def _accuracy_of_rows(device: str, hidden: int, inside: int) -> Timing:
    count = round(SHARE_OF_ROWS * inside)
    weight, rows = random_weight(inside, hidden, device), random_rows(inside, count, device)
    basis = random_basis(count, 16, device)
    wide = weight[rows].cpu().double()
    exact = (wide - basis.cpu().double() @ (basis.cpu().double().T @ wide)).bfloat16()
    by_dense = (dense_projector(basis).bfloat16() @ weight[rows]).cpu()
    project_rows_(weight, rows, basis)
    ours, plain = (float((result != exact).double().mean()) * 100 for result in (weight[rows].cpu(), by_dense))
    return Timing("values unlike rounded fp64, 7B gate, rank 16, against P W in bf16", ours, plain, "%")


def _accuracy_of_basis(device: str, inside: int) -> Timing:
    directions = random_directions(1, 64, round(SHARE_OF_ROWS * inside), device)[0]
    basis = leading_basis(directions, ENERGY).cpu().double()
    right, single = (
        torch.linalg.svd(matrix, full_matrices=False).Vh[: basis.shape[1]].T.cpu().double()
        for matrix in (directions.cpu().double(), directions.float())
    )
    ours, plain = (
        float(torch.linalg.matrix_norm(result - right @ (right.T @ result), 2)) for result in (basis, single)
    )
    return Timing("sine to the fp64 SVD's space, 64 directions, against SVD in fp32", ours, plain, "1")


def measure(
    cases: Sequence[KernelCase], ceilings: Ceilings, device: str, rounds: int
) -> tuple[list[Timing], list[Point], list[str]]:
    """Of each case its row, its point in the picture, or why it was not run."""
    timings, points, left_out = [], [], []
    for case in cases:
        reason = why_not(case, ceilings, device, rounds)
        if reason is not None:
            left_out.append(f"{case.name} ({reason})")
            continue
        ours, plain = paired(*case.make(), device, rounds)
        gc.collect()  # the closures hold the tensors
        share = ceilings.seconds(case.flops, case.size, case.dtype) / ours
        timings.append(Timing(case.name, ours * 1e3, None if plain is None else plain * 1e3, "ms", share))
        points.append(Point(case.kernel, case.label, case.flops / case.size, case.flops / ours))
    return timings, points, left_out


def main(
    rounds: Rounds = 5,
    device: Device = "cpu",
    json_file: JsonFile = None,
    picture: Annotated[Path | None, typer.Option(help="The roofline picture, as PNG.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The shapes of one model.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Shapes of no model: shows that all of it runs.")] = False,
) -> None:
    """Measure all kernels, and what binds them."""
    ceilings = measure_ceilings(device, tiny)
    timings = [Timing("copy, read and written", ceilings.copy / 1e9, None, "GB/s")]
    for dtype, rate in sorted(ceilings.rate.items(), key=lambda item: -item[1]):
        timings.append(Timing(f"product in {str(dtype).removeprefix('torch.')}", rate / 1e9, None, "GFLOP/s"))
    models = TINY if tiny else {"7B": MODELS["7B"]} if quick else MODELS
    measured, points, left_out = measure(list(all_cases(device, models)), ceilings, device, rounds)
    place = device_name(device)
    timings += [*measured, *accuracy(device, *(models.get("7B") or MODELS["7B"]))]
    report(f"Linear algebra, {place}: medians of {rounds} runs in turn", timings, device, json_file)
    console = Console(width=120, highlight=False)
    if left_out:
        console.print(f"not run on {device}, for the time or memory it takes: {'; '.join(left_out)}")
    if not torch.cuda.is_available():
        console.print("No GPU here: its rows are open.")
    if picture is not None:
        draw(picture, points, ceilings, device, place)


if __name__ == "__main__":
    typer.run(main)
