"""What every benchmark of speed prints and stores: rows of ours against a baseline, measured in one run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One thing measured two ways."""

    case: str
    ours: float
    baseline: float | None
    ratio: float | None
    """baseline / ours: above 1 is faster, or smaller."""
    share_of_ceiling: float | None
    """Of what the device could do at best, measured in the same run."""
    unit: str
    device: str
    versions: dict[str, str]


def row(
    case: str, ours: float, baseline: float | None, unit: str, device: str = "cpu", share: float | None = None
) -> Row:
    ratio = None if baseline is None else baseline / ours
    return Row(case, ours, baseline, ratio, share, unit, device_name(device), versions())


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"{device}, {os.cpu_count()} cores, {platform.machine()}"


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "safetensors")}


def show(title: str, rows: Sequence[Row]) -> None:
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, title_justify="left")
    for number, name in enumerate(("case", "ours", "baseline", "ratio", "of ceiling", "unit")):
        table.add_column(name, justify="left" if number in (0, 5) else "right")
    for each in rows:
        table.add_row(
            each.case,
            f"{each.ours:.3g}",
            "–" if each.baseline is None else f"{each.baseline:.3g}",
            "–" if each.ratio is None else f"{each.ratio:.2f} ×",
            "–" if each.share_of_ceiling is None else f"{each.share_of_ceiling:.0%}",
            each.unit,
        )
    Console(width=120).print(table)


def store(path: Path | None, rows: Sequence[Row]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(each) for each in rows], indent=1, ensure_ascii=False) + "\n")
