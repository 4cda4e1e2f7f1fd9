"""How fast the linear algebra is, kernel by kernel, and how near to what the device can do.

    python -m benchmarks.projection [--device cpu] [--json FILE] [--picture FILE] [--quick]

Shapes are those of the MLPs of Qwen2.5 models. Each kernel runs in turn with a plain form of the same, and medians are
reported:

- rows: W_S ← (I − Q Qᵀ) W_S in bf16, S a tenth of the rows, against the dense projector P W_S;
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.rows import Row, device_name, row, show, store
from chip.kernels.gram import accumulate_gram, accumulation_dtype
from chip.kernels.solve import solve_spd_
from chip.kernels.subspace import leading_bases, leading_basis, project_rows_

MODELS = {"3B": (2048, 11008), "7B": (3584, 18944), "32B": (5120, 27648), "72B": (8192, 29568)}
"""Width of the hidden states, and inside the MLP."""
RANKS = (1, 16, 64, 512)
EDITED_LAYERS = 6  # 22 to 27 of a 7B model
SHARE_OF_ROWS = 0.1
TOKENS = 1024
ENERGY = 0.95
SECONDS = {"cpu": 30.0}
"""What all runs of one case may take at the ceiling; elsewhere a minute."""
MEMORY = {"cpu": 8e9}
"""What one case may take; elsewhere most of what is free."""


@dataclass(frozen=True)
class Look:
    """How a kernel shows in the picture."""

    name: str
    color: str
    marker: str
    label_at: tuple[float, float, str]
    """Where its labels stand: points right of and above the marker, and their alignment."""


LOOKS = {
    "rows": Look("row projection", "#1f6fb4", "o", (8, -3, "left")),
    "gram": Look("Gram matrix", "#2a9d5c", "s", (8, -3, "left")),
    "ridge": Look("ridge solve", "#c8502d", "D", (0, -16, "center")),
    "basis": Look("leading basis", "#7b4fa3", "^", (0, -16, "center")),
}

Run = Callable[[], object]


@dataclass(frozen=True)
class Ceilings:
    """What the device can do, measured."""

    copy: float
    """Bytes read and written in a second by a copy."""
    rate: Mapping[torch.dtype, float]
    """FLOP/s of a large product."""

    def seconds(self, flops: float, size: float, dtype: torch.dtype) -> float:
        return max(flops / self.rate[dtype], size / self.copy)


@dataclass(frozen=True)
class Case:
    """One kernel on one shape, against a plain form."""

    kernel: str
    name: str
    flops: float
    size: float
    """Bytes that must move."""
    dtype: torch.dtype
    """What it computes in."""
    plain_flops: float
    memory: float
    """Bytes that both forms take together."""
    make: Callable[[], tuple[Run, Run]]
    """Ours and the plain form, on the same data."""
    label: str = ""
    """In the picture; cases near each other share one."""


@dataclass(frozen=True)
class Point:
    """Where one case lies in the roofline picture."""

    kernel: str
    label: str
    intensity: float
    rate: float


def place(device: str) -> str:
    name = device_name(device)
    return f"{name}, {torch.get_num_threads()} threads" if device == "cpu" else name


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()


def seconds(run: Run, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def paired(ours: Run, plain: Run, device: str, rounds: int) -> tuple[float, float]:
    """Medians, in turn: what disturbs the one disturbs the other."""
    for run in (ours, plain):  # the first run allocates
        run()
    times = [(seconds(ours, device), seconds(plain, device)) for _ in range(rounds)]
    first, second = zip(*times, strict=True)
    return median(first), median(second)


def measure_ceilings(device: str) -> Ceilings:
    """The best of a few: a ceiling is what nothing disturbs."""
    small = device == "cpu"
    source, target = torch.ones(2, 1 << (28 if small else 31), dtype=torch.uint8, device=device)
    copy = 2 * source.numel() / min(seconds(lambda: target.copy_(source), device) for _ in range(9))
    side = 4096 if small else 8192
    dtypes = {torch.bfloat16, torch.float32, accumulation_dtype(torch.device(device))}
    rate = {}
    for dtype in dtypes:
        matrix = torch.randn(side, side, device=device).to(dtype)
        rate[dtype] = 2 * side**3 / min(seconds(lambda m=matrix: m @ m, device) for _ in range(4))  # type: ignore[misc]
    return Ceilings(copy, rate)


def random_weight(height: int, width: int, device: str) -> Tensor:
    """bf16, one random block again and again."""
    block = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16().to(device)
    weight: Tensor = block.repeat(-(-height * width // len(block)))[: height * width].view(height, width)
    return weight


def random_rows(height: int, count: int, device: str) -> Tensor:
    return torch.randperm(height, generator=torch.Generator().manual_seed(1))[:count].sort().values.to(device)


def random_basis(height: int, rank: int, device: str) -> Tensor:
    directions = torch.randn(height, rank, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(directions).Q.float().to(device)
    return basis


def dense(weight: Tensor, rows: Tensor, projector: Tensor) -> None:
    """W_S ← P W_S, in the dtype of P."""
    weight[rows] = (projector @ weight[rows].to(projector.dtype)).to(weight.dtype)


def dense_projector(basis: Tensor) -> Tensor:
    projector: Tensor = torch.eye(len(basis), device=basis.device) - basis @ basis.T
    return projector


def rows_case(
    name: str, height: int, width: int, count: int, rank: int, device: str, dtype: torch.dtype = torch.bfloat16
) -> Case:
    """Against P W_S in `dtype`."""

    def make() -> tuple[Run, Run]:
        weight, rows = random_weight(height, width, device), random_rows(height, count, device)
        basis = random_basis(count, rank, device)
        projector = dense_projector(basis).to(dtype)
        return lambda: project_rows_([weight], rows[None], [basis]), lambda: dense(weight, rows, projector)

    against = "" if dtype == torch.bfloat16 else ", P W in fp32"
    values = count * width
    return Case(
        "rows",
        f"rows, {name}, {count} of {height} × {width}, rank {rank}{against}",
        flops=4.0 * rank * values,
        size=4.0 * values,
        dtype=torch.float32,
        plain_flops=2.0 * count * values,
        memory=2.0 * height * width + 12.0 * values + 8 * count**2,
        make=make,
        label=f"rank {rank}",
    )


def all_sites_case(device: str, one_by_one: bool) -> Case:
    """gate, up and down of the edited layers of a 7B model in two calls; against P W_S, or ours, site by site."""
    hidden, inside = MODELS["7B"]
    shapes = ((2 * EDITED_LAYERS, inside, hidden), (EDITED_LAYERS, hidden, inside))
    counts = [round(SHARE_OF_ROWS * height) for _, height, _ in shapes]

    def make() -> tuple[Run, Run]:
        groups = []
        for (target_modules, height, width), count in zip(shapes, counts, strict=True):
            weights = [random_weight(height, width, device) for _ in range(target_modules)]
            rows, basis = random_rows(height, count, device), random_basis(count, 16, device)
            groups.append(
                (weights, rows.repeat(target_modules, 1), [basis] * target_modules, dense_projector(basis).bfloat16())
            )

        def ours() -> None:
            for weights, rows, bases, _ in groups:
                project_rows_(weights, rows, bases)

        def plain() -> None:
            for weights, rows, bases, projector in groups:
                for weight, chosen, basis in zip(weights, rows, bases, strict=True):
                    if one_by_one:
                        project_rows_([weight], chosen[None], [basis])
                    else:
                        dense(weight, chosen, projector)

        return ours, plain

    values = [target_modules * count * width for (target_modules, _, width), count in zip(shapes, counts, strict=True)]
    return Case(
        "rows",
        f"rows, all {3 * EDITED_LAYERS} edited sites of 7B, rank 16" + (", a call a site" if one_by_one else ""),
        flops=4.0 * 16 * sum(values),
        size=4.0 * sum(values),
        dtype=torch.float32,
        plain_flops=sum(2.0 * count * part for count, part in zip(counts, values, strict=True)),
        memory=2.0 * sum(target_modules * height * width for target_modules, height, width in shapes) + 1e9,
        make=make,
        label="rank 16",
    )


def gram_case(width: int, device: str) -> Case:
    def make() -> tuple[Run, Run]:
        x = torch.randn(TOKENS, width, device=device)
        total = torch.zeros(width, width, dtype=accumulation_dtype(x.device), device=device)

        def plain() -> None:
            nonlocal total
            total += x.T @ x

        return lambda: accumulate_gram(total, x), plain

    return Case(
        "gram",
        f"Gram, {TOKENS} tokens × {width}",
        flops=1.0 * TOKENS * width * (width + 1),
        size=4.0 * TOKENS * width + 8.0 * width * (width + 1),
        dtype=torch.float32,
        plain_flops=2.0 * TOKENS * width**2,
        memory=4.0 * TOKENS * width + 12.0 * width**2,
        make=make,
        label=f"{TOKENS} tokens",
    )


def ridge_case(width: int, height: int, device: str) -> Case:
    wide = accumulation_dtype(torch.device(device))

    def make() -> tuple[Run, Run]:
        x = torch.randn(width, width, device=device)
        full = (x.T @ x).div_(width).to(wide)
        full.diagonal().add_(1)
        matrix, right = full.clone(), torch.randn(height, width, device=device).to(wide)

        def plain() -> float:
            solution = torch.cholesky_solve(right.T, torch.linalg.cholesky(full)).T
            return float(torch.linalg.norm(solution @ full - right))

        return lambda: solve_spd_(right, matrix), plain

    flops = width**3 / 3 + 4.0 * height * width**2
    return Case(
        "ridge",
        f"ridge, {height} × {width}",
        flops=flops,
        size=8.0 * (width**2 / 2 + 2 * height * width),
        dtype=wide,
        plain_flops=flops,
        memory=8.0 * (5 * width**2 + 5 * height * width),
        make=make,
        label=f"d = {width}",
    )


def basis_case(count: int, width: int, device: str) -> Case:
    wide = accumulation_dtype(torch.device(device))

    def make() -> tuple[Run, Run]:
        directions = random_directions(1, count, width, device)[0]
        single = directions.float()
        return (
            lambda: leading_basis(directions, ENERGY),
            lambda: torch.linalg.svd(single, full_matrices=False),
        )

    return Case(
        "basis", f"basis, {count} directions × {width}", *basis_work(count, width), wide, 0, 1e9, make, f"m = {count}"
    )


def bases_case(target_modules: int, count: int, width: int, device: str) -> Case:
    """All sites at once, against one SVD a site."""

    def make() -> tuple[Run, Run]:
        directions = random_directions(target_modules, count, width, device)
        single = directions.float()
        return (
            lambda: leading_bases(directions, ENERGY),
            lambda: [torch.linalg.svd(each, full_matrices=False) for each in single],
        )

    flops, size = basis_work(count, width)
    name = f"basis, {count} directions × {width}, {target_modules} sites"
    return Case(
        "basis",
        name,
        target_modules * flops,
        target_modules * size,
        accumulation_dtype(torch.device(device)),
        0,
        1e9,
        make,
        f"m = {count}",
    )


def basis_work(count: int, width: int) -> tuple[float, float]:
    """FLOPs and bytes: half a Gram matrix, its eigenvectors U, and Dᵀ U."""
    few, many = sorted((count, width))
    return 3.0 * few**2 * many + 9.0 * few**3, 16.0 * count * width


def random_directions(target_modules: int, count: int, width: int, device: str) -> Tensor:
    """Unit rows whose singular values fall off."""
    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(0, -2, width, dtype=torch.float64)
    directions = torch.randn(target_modules, count, width, generator=generator, dtype=torch.float64) * scale
    return torch.nn.functional.normalize(directions, dim=2).to(device, accumulation_dtype(torch.device(device)))


def all_cases(device: str, quick: bool) -> Iterator[Case]:
    models = {"7B": MODELS["7B"]} if quick else MODELS
    for (name, (hidden, inside)), rank in product(models.items(), RANKS):
        for module, height, width in (("gate", inside, hidden), ("down", hidden, inside)):
            count = round(SHARE_OF_ROWS * height)
            if rank <= count:
                yield rows_case(f"{name} {module}", height, width, count, rank, device)
                if rank == 16:
                    yield rows_case(f"{name} {module}", height, width, count, rank, device, torch.float32)
    hidden, inside = MODELS["7B"]
    yield rows_case("7B down", hidden, inside, hidden, 16, device)
    yield rows_case("7B gate", inside, hidden, inside, 16, device)
    yield all_sites_case(device, one_by_one=False)
    yield all_sites_case(device, one_by_one=True)
    for width in sorted(width for widths in models.values() for width in widths):
        yield gram_case(width, device)
    for hidden, inside in models.values():
        yield ridge_case(hidden, hidden, device)
        yield ridge_case(inside, hidden, device)
    for (_, inside), count in product(models.values(), (16, 64, 512)):
        yield basis_case(count, round(SHARE_OF_ROWS * inside), device)
    yield bases_case(2 * EDITED_LAYERS, 16, round(SHARE_OF_ROWS * MODELS["7B"][1]), device)
    yield bases_case(2 * EDITED_LAYERS, 64, round(SHARE_OF_ROWS * MODELS["7B"][1]), device)


def why_not(case: Case, ceilings: Ceilings, device: str, rounds: int) -> str | None:
    """What forbids to run it here."""
    memory = MEMORY[device] if device in MEMORY else 0.9 * torch.cuda.mem_get_info()[0] if "cuda" in device else 1e10
    if case.memory > memory:
        return f"{case.memory / 1e9:.0f} GB"
    needed = (rounds + 1) * (case.flops + case.plain_flops) / ceilings.rate[case.dtype]
    return f"{needed:.0f} s" if needed > SECONDS.get(device, 60.0) else None


def accuracy(device: str) -> list[Row]:
    """Against fp64, in one case each."""
    hidden, inside = MODELS["7B"]
    count = round(SHARE_OF_ROWS * inside)
    weight, rows = random_weight(inside, hidden, device), random_rows(inside, count, device)
    basis = random_basis(count, 16, device)
    wide = weight[rows].cpu().double()
    exact = (wide - basis.cpu().double() @ (basis.cpu().double().T @ wide)).bfloat16()
    by_dense = (dense_projector(basis).bfloat16() @ weight[rows]).cpu()
    project_rows_([weight], rows[None], [basis])
    unlike = [float((found != exact).double().mean()) * 100 for found in (weight[rows].cpu(), by_dense)]
    directions = random_directions(1, 64, count, device)[0]
    ours = leading_basis(directions, ENERGY).cpu().double()
    right, single = (
        torch.linalg.svd(each, full_matrices=False).Vh[: ours.shape[1]].T.cpu().double()
        for each in (directions.cpu().double(), directions.float())
    )
    sines = [float(torch.linalg.matrix_norm(found - right @ (right.T @ found), 2)) for found in (ours, single)]
    return [
        row("values unlike rounded fp64, 7B gate, rank 16, against P W in bf16", unlike[0], unlike[1], "%", device),
        row("sine to the fp64 SVD's space, 64 directions, against SVD in fp32", sines[0], sines[1], "1", device),
    ]


def draw(path: Path, points: Sequence[Point], ceilings: Ceilings, device: str) -> None:
    """The roofline: FLOPs per byte across, rate up, ceilings as lines."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes: Any = figure.add_subplot()
    left, right = 0.5, 2 * max(point.intensity for point in points)
    copy = ceilings.copy / 1e9
    rates = {dtype: ceilings.rate[dtype] / 1e9 for dtype in {torch.float32, accumulation_dtype(torch.device(device))}}
    for dtype, rate in rates.items():
        axes.plot((rate / copy, right), (rate, rate), "-" if dtype == torch.float32 else "--", color="0.35")
        name = f"product in fp{torch.finfo(dtype).bits}, {rate:,.0f} GFLOP/s"
        axes.annotate(name, (right, rate), (-2, 5), textcoords="offset points", ha="right", color="0.35")
    highest = max(rates.values())
    axes.plot((left, highest / copy), (left * copy, highest), color="0.35")
    axes.text(left * 1.1, 1.9 * copy, f"copy, {copy:,.0f} GB/s", color="0.35")
    for kernel, look in LOOKS.items():
        mine = sorted((point for point in points if point.kernel == kernel), key=lambda point: point.rate)
        across, up = [point.intensity for point in mine], [point.rate / 1e9 for point in mine]
        axes.plot(across, up, look.marker, color=look.color, alpha=0.7, label=look.name)
        lowest = {point.label: point for point in reversed(mine)}
        for label, point in lowest.items():
            *offset, side = look.label_at
            spot = (point.intensity, point.rate / 1e9)
            axes.annotate(label, spot, offset, textcoords="offset points", ha=side, fontsize=8.5, color=look.color)
    axes.set(
        xscale="log", yscale="log", xlim=(left, right), ylim=(min(point.rate for point in points) / 2e9, 2 * highest)
    )
    axes.set(xlabel="FLOPs per byte that must move", ylabel="GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_title(place(device), loc="left", color="0.35", fontsize=10)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(LOOKS), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, mps.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the rows go.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Where the roofline picture goes (PNG; needs matplotlib).")
    ] = None,
    quick: Annotated[bool, typer.Option(help="The shapes of one model, and fewer runs.")] = False,
) -> None:
    """Measure all kernels, and what binds them."""
    console = Console(width=120, highlight=False)
    rounds = 3 if quick else 5
    ceilings = measure_ceilings(device)
    rows = [row("copy, read and written", ceilings.copy / 1e9, None, "GB/s", device)]
    for dtype, rate in sorted(ceilings.rate.items(), key=lambda item: -item[1]):
        rows.append(row(f"product in {str(dtype).removeprefix('torch.')}", rate / 1e9, None, "GFLOP/s", device))
    points, left_out = [], []
    for case in all_cases(device, quick):
        reason = why_not(case, ceilings, device, rounds)
        if reason is not None:
            left_out.append(f"{case.name} ({reason})")
            continue
        ours, plain = paired(*case.make(), device, rounds)
        gc.collect()  # the closures hold the tensors
        share = ceilings.seconds(case.flops, case.size, case.dtype) / ours
        rows.append(row(case.name, ours * 1e3, plain * 1e3, "ms", device, share))
        points.append(Point(case.kernel, case.label, case.flops / case.size, case.flops / ours))
    rows += accuracy(device)
    show(f"Linear algebra, {place(device)}: medians of {rounds} runs in turn", rows)
    if left_out:
        console.print(f"not run on {device}, for the time or memory it takes: {'; '.join(left_out)}")
    if not torch.cuda.is_available():
        console.print("No GPU here: its rows are open.")
    store(json_file, rows)
    if picture is not None:
        draw(picture, points, ceilings, device)


if __name__ == "__main__":
    typer.run(main)
