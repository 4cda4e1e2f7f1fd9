"""The roofline picture of `projection`: FLOPs per byte across, rate up, what the device can do as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.reporting import save_picture
from chip.kernels.gram import accumulation_dtype


@dataclass(frozen=True)
class PlotStyle:
    """How a kernel shows in the picture."""

    name: str
    color: str
    marker: str
    label_at: tuple[float, float, str]
    """Where its labels stand: points right of and above the marker, and their alignment."""


STYLES = {
    "rows": PlotStyle("row projection", "#1f6fb4", "o", (8, -3, "left")),
    "gram": PlotStyle("Gram matrix", "#2a9d5c", "s", (8, -3, "left")),
    "ridge": PlotStyle("ridge solve", "#c8502d", "D", (0, -16, "center")),
    "basis": PlotStyle("leading basis", "#7b4fa3", "^", (0, -16, "center")),
}


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
class Point:
    """Where one case lies in the roofline picture."""

    kernel: str
    label: str
    intensity: float
    rate: float


def draw(path: Path, points: Sequence[Point], ceilings: Ceilings, device: str, title: str) -> None:
    """Write the picture (PNG)."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes: Any = figure.add_subplot()
    left, right = 0.5, 2 * max(point.intensity for point in points)
    highest = _draw_ceilings(axes, ceilings, device, left, right)
    for kernel, style in STYLES.items():
        _draw_kernel(axes, style, [point for point in points if point.kernel == kernel])
    lowest = min(point.rate for point in points) / 2e9
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(lowest, 2 * highest))
    axes.set(xlabel="FLOPs per byte that must move", ylabel="GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left", color="0.35", fontsize=10)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(STYLES), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(figure, path, dpi=150)


def _draw_ceilings(axes: Any, ceilings: Ceilings, device: str, left: float, right: float) -> float:
    """Lines of what the device can do; returns the highest, in GFLOP/s."""
    copy = ceilings.copy / 1e9
    rates = {dtype: ceilings.rate[dtype] / 1e9 for dtype in {torch.float32, accumulation_dtype(torch.device(device))}}
    for dtype, rate in rates.items():
        axes.plot((rate / copy, right), (rate, rate), "-" if dtype == torch.float32 else "--", color="0.35")
        name = f"product in fp{torch.finfo(dtype).bits}, {rate:,.0f} GFLOP/s"
        axes.annotate(name, (right, rate), (-2, 5), textcoords="offset points", ha="right", color="0.35")
    highest = max(rates.values())
    axes.plot((left, highest / copy), (left * copy, highest), color="0.35")
    axes.text(left * 1.1, 1.9 * copy, f"copy, {copy:,.0f} GB/s", color="0.35")
    return highest


def _draw_kernel(axes: Any, style: PlotStyle, points: Sequence[Point]) -> None:
    """A marker for each case; of those that share a label, the lowest bears it."""
    ordered = sorted(points, key=lambda point: point.rate)
    across, up = [point.intensity for point in ordered], [point.rate / 1e9 for point in ordered]
    axes.plot(across, up, style.marker, color=style.color, alpha=0.7, label=style.name)
    for label, point in {point.label: point for point in reversed(ordered)}.items():
        *offset, side = style.label_at
        spot = (point.intensity, point.rate / 1e9)
        axes.annotate(label, spot, offset, textcoords="offset points", ha=side, fontsize=8.5, color=style.color)
