"""The kernels that `projection` measures, each on the shapes of Qwen2.5 models and next to a plain form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from chip.kernels.gram import accumulate_gram, accumulation_dtype
from chip.kernels.solve import solve_spd_
from chip.kernels.subspace import leading_bases, leading_basis, project_rows_
from chip.kernels.symmetric import SymmetricMatrix, SymmetricSum

MODELS = {"3B": (2048, 11008), "7B": (3584, 18944), "32B": (5120, 27648), "72B": (8192, 29568)}
"""Width of the hidden states, and inside the MLP."""
RANKS = (1, 16, 64, 512)
EDITED_LAYERS = 6  # 22 to 27 of a 7B model
SHARE_OF_ROWS = 0.1
TOKENS = 1024
ENERGY = 0.95

Run = Callable[[], object]


@dataclass(frozen=True)
class KernelCase:
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
    make: Callable[[], tuple[Run, Run | None]]
    """Ours and the plain form, on the same data; None where it was measured in another case."""
    label: str = ""
    """In the picture; cases near each other share one."""


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
    name: str, height: int, width: int, count: int, rank: int, device: str, dtype: torch.dtype | None = torch.bfloat16
) -> KernelCase:
    """Against P W_S in `dtype`, which takes as long at any rank; None: against nothing."""

    def make() -> tuple[Run, Run | None]:
        weight, rows = random_weight(height, width, device), random_rows(height, count, device)
        basis = random_basis(count, rank, device)
        projector = None if dtype is None else dense_projector(basis).to(dtype)
        plain = None if projector is None else partial(dense, weight, rows, projector)
        return lambda: project_rows_(weight, rows, basis), plain

    against = ", P W in fp32" if dtype == torch.float32 else ""
    values = count * width
    return KernelCase(
        "rows",
        f"rows, {name}, {count} of {height} × {width}, rank {rank}{against}",
        flops=4.0 * rank * values,
        size=4.0 * values,
        dtype=torch.float32,
        plain_flops=0.0 if dtype is None else 2.0 * count * values,
        memory=2.0 * height * width + 12.0 * values + 8 * count**2,
        make=make,
        label=f"rank {rank}",
    )


def all_modules_case(device: str) -> KernelCase:
    """gate, up and down of the edited layers of a 7B model, against P W_S."""
    hidden, inside = MODELS["7B"]
    shapes = ((2 * EDITED_LAYERS, inside, hidden), (EDITED_LAYERS, hidden, inside))
    counts = [round(SHARE_OF_ROWS * height) for _, height, _ in shapes]

    def make() -> tuple[Run, Run]:
        modules = []
        for (number, height, width), count in zip(shapes, counts, strict=True):
            rows, basis = random_rows(height, count, device), random_basis(count, 16, device)
            projector = dense_projector(basis).bfloat16()
            modules += [(random_weight(height, width, device), rows, basis, projector) for _ in range(number)]

        def ours() -> None:
            for weight, rows, basis, _ in modules:
                project_rows_(weight, rows, basis)

        def plain() -> None:
            for weight, rows, _, projector in modules:
                dense(weight, rows, projector)

        return ours, plain

    values = [modules * count * width for (modules, _, width), count in zip(shapes, counts, strict=True)]
    return KernelCase(
        "rows",
        f"rows, all {3 * EDITED_LAYERS} edited sites of 7B, rank 16",
        flops=4.0 * 16 * sum(values),
        size=4.0 * sum(values),
        dtype=torch.float32,
        plain_flops=sum(2.0 * count * part for count, part in zip(counts, values, strict=True)),
        memory=2.0 * sum(modules * height * width for modules, height, width in shapes) + 1e9,
        make=make,
        label="rank 16",
    )


def gram_case(width: int, device: str) -> KernelCase:
    def make() -> tuple[Run, Run]:
        x = torch.randn(TOKENS, width, device=device)
        wide = accumulation_dtype(x.device)
        whole, half = torch.zeros(width, width, dtype=wide, device=device), SymmetricMatrix(width, wide, x.device)

        def plain() -> None:
            nonlocal whole
            whole += x.T @ x

        return lambda: accumulate_gram(half, x), plain

    return KernelCase(
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


def ridge_case(width: int, height: int, device: str) -> KernelCase:
    wide = accumulation_dtype(torch.device(device))

    def make() -> tuple[Run, Run]:
        x = torch.randn(width, width, device=device)
        full = (x.T @ x).div_(width).to(wide)
        full.diagonal().add_(1)
        system, right = SymmetricSum.of(full), torch.randn(height, width, device=device).to(wide)

        def plain() -> float:
            solution = torch.cholesky_solve(right.T, torch.linalg.cholesky(full)).T
            return float(torch.linalg.norm(solution @ full - right))

        return lambda: solve_spd_(right.clone(), system), plain

    flops = width**3 / 3 + 4.0 * height * width**2
    return KernelCase(
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


def basis_case(count: int, width: int, device: str, modules: int = 1) -> KernelCase:
    """All modules at once, against one SVD a module."""

    def make() -> tuple[Run, Run]:
        directions = random_directions(modules, count, width, device)
        single = directions.float()

        def ours() -> object:
            return leading_basis(directions[0], ENERGY) if modules == 1 else leading_bases(directions, ENERGY)

        return ours, lambda: [torch.linalg.svd(matrix, full_matrices=False) for matrix in single]

    flops, size = basis_work(count, width)
    name = f"basis, {count} directions × {width}" + ("" if modules == 1 else f", {modules} sites")
    wide = accumulation_dtype(torch.device(device))
    return KernelCase("basis", name, modules * flops, modules * size, wide, 0, 1e9, make, f"m = {count}")


def basis_work(count: int, width: int) -> tuple[float, float]:
    """FLOPs and bytes: half a Gram matrix, its eigenvectors U, and Dᵀ U."""
    few, many = sorted((count, width))
    return 3.0 * few**2 * many + 9.0 * few**3, 16.0 * count * width


def random_directions(modules: int, count: int, width: int, device: str) -> Tensor:
    """Unit rows whose singular values fall off."""
    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(0, -2, width, dtype=torch.float64)
    directions = torch.randn(modules, count, width, generator=generator, dtype=torch.float64) * scale
    return torch.nn.functional.normalize(directions, dim=2).to(device, accumulation_dtype(torch.device(device)))


def all_cases(device: str, models: dict[str, tuple[int, int]]) -> Iterator[KernelCase]:
    """Every kernel on these models; some rows are of the 7B model alone."""
    yield from rows_cases(device, models)
    for width in sorted(width for widths in models.values() for width in widths):
        yield gram_case(width, device)
    for hidden, inside in models.values():
        yield ridge_case(hidden, hidden, device)
        yield ridge_case(inside, hidden, device)
    for (_, inside), count in product(models.values(), (16, 64, 512)):
        yield basis_case(count, round(SHARE_OF_ROWS * inside), device)
    if "7B" in models:
        for count in (16, 64):
            yield basis_case(count, round(SHARE_OF_ROWS * models["7B"][1]), device, modules=2 * EDITED_LAYERS)


def rows_cases(device: str, models: dict[str, tuple[int, int]]) -> Iterator[KernelCase]:
    """Row projections: a tenth of the rows, then in the 7B model all rows, and all modules."""
    for (name, (hidden, inside)), rank in product(models.items(), RANKS):
        for module, height, width in (("gate", inside, hidden), ("down", hidden, inside)):
            count = round(SHARE_OF_ROWS * height)
            if rank <= count:
                for dtype in (torch.bfloat16, torch.float32) if rank == 16 else (None,):
                    yield rows_case(f"{name} {module}", height, width, count, rank, device, dtype)
    if "7B" in models:
        hidden, inside = models["7B"]
        yield rows_case("7B down", hidden, inside, hidden, 16, device)
        yield rows_case("7B gate", inside, hidden, inside, 16, device)
        yield all_modules_case(device)
