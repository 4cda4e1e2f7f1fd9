"""How every benchmark prints and stores its figures.

A file of results is one JSON object: what holds for all of its rows, the columns' names, and a list for each row.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # not every benchmark draws
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
DIGITS = 6  # significant; tables show three
COLORS = 128

JsonFile = Annotated[Path | None, typer.Option("--json", help="File for the results.")]
Rounds = Annotated[int, typer.Option(min=1, help="Runs of each variant; medians are reported.")]
Device = Annotated[str, typer.Option(help="Device that the model runs on: cpu, cuda, mps.")]


@dataclass(frozen=True)
class Timing:
    """One figure of ours, next to a baseline that was measured in the same run."""

    case: str
    ours: float
    baseline: float | None
    unit: str
    share_of_ceiling: float | None = None
    """Of what the device could do at best, measured in the same run."""

    @property
    def ratio(self) -> float | None:
        """baseline / ours: above 1 is faster, or smaller."""
        return None if self.baseline is None else self.baseline / self.ours


def device_name(device: str) -> str:
    """The GPU's name, or how many cores of what kind, and how many threads torch has."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"{device}, {os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Of the libraries that figures depend on."""
    return {name: version(name) for name in ("torch", "transformers", "safetensors")}


def report(title: str, timings: Sequence[Timing], device: str, file: Path | None) -> None:
    """Print a table of the timings, and store them where a file is named."""
    print_table(title, ("case", "ours", "baseline", "ratio", "of ceiling", "unit"), map(_cells, timings), {0, 5})
    if file is not None:
        names = [field.name for field in fields(Timing)]
        write_rows(file, names, map(astuple, timings), device=device_name(device), versions=versions())


def _cells(timing: Timing) -> list[str]:
    numbers = ((timing.ours, ".3g", ""), (timing.baseline, ".3g", ""), (timing.ratio, ".2f", " ×"))
    shown = ("–" if number is None else f"{number:{form}}{unit}" for number, form, unit in numbers)
    share = timing.share_of_ceiling
    return [timing.case, *shown, "–" if share is None else f"{share:.0%}", timing.unit]


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: set[int], width: int = 120
) -> None:
    """
    Args:
        left: which columns hold words; numbers are aligned on the right.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number in left else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=width).print(table)


def save_picture(figure: Figure, file: Path, dpi: int) -> None:
    """As PNG, in a few colors: a third of the bytes."""
    figure.savefig(file, dpi=dpi)
    with Image.open(file) as image:
        image.convert("RGB").quantize(COLORS).save(file, optimize=True)


def largest_change(changes: Mapping[str, float]) -> float:
    """The largest ‖W′ − W‖ / ‖W‖ of a weight, by name; of a bias, which is near zero at first, it says nothing."""
    return max((change for name, change in changes.items() if not name.endswith(".bias")), default=0.0)


def write_rows(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], **header: object) -> None:
    """Write a file of results, a line for each row; numbers are rounded to `DIGITS`.

    Args:
        header: what holds for all rows.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    head = _compact({**header, "columns": list(columns)}).removesuffix("}")
    lines = ",\n".join(_compact(_rounded(list(row))) for row in rows)
    file.write_text(f'{head},"rows":[\n{lines}\n]}}\n', encoding="utf-8")


def store_rows(
    file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]], device: str, **header: object
) -> None:
    """`write_rows` of rows by their columns' names, null where they have none; the header says what they ran on."""
    lines = ([row.get(column) for column in columns] for row in rows)
    write_rows(file, columns, lines, **header, device=device_name(device), versions=versions())


def known_rows(file: Path) -> list[dict[str, Any]]:
    """What an earlier run has left, if anything."""
    return read_rows(file)[1] if file.exists() else []


def read_rows(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `write_rows` wrote: the header, and each row by its columns' names."""
    header = json.loads(file.read_text(encoding="utf-8"))
    columns, rows = header.pop("columns"), header.pop("rows")
    return header, [dict(zip(columns, row, strict=True)) for row in rows]


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
