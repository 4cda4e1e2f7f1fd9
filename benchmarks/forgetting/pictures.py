"""Two pictures: what is forgotten against what is kept, and what attacks bring back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.forgetting.figures import REPORTED, ResultRow
from benchmarks.forgetting.methods import Retrained, RetrainedAgain, Untouched
from benchmarks.forgetting.summaries import (
    OUR,
    TRAINED_NAMES,
    TRAINING_FREE_NAMES,
    MethodSummary,
    Place,
    Table,
    best,
    tables,
)
from benchmarks.reporting import save_picture

PANEL = (2.9, 2.5)  # inches
COLUMNS = 4
DPI = 100

_UNDER = "exact_match | "


@dataclass(frozen=True)
class Mark:
    """How a kind of method is drawn."""

    label: str
    methods: tuple[str, ...]
    """None of them: all that no other mark has."""
    shape: str
    color: str
    size: float = 30.0


OTHERS = Mark("controls", (), "x", "#999999")
MARKS = (
    Mark("ours", (OUR,), "*", "#d62728", 190.0),
    Mark("retrained", (Retrained.name, RetrainedAgain.name), "D", "#111111", 55.0),
    Mark("untouched", (Untouched.name,), "s", "#999999"),
    Mark("other training-free", TRAINING_FREE_NAMES, "o", "#1f77b4"),
    Mark("by training", TRAINED_NAMES, "^", "#ff7f0e"),
)


def draw(rows: Iterable[ResultRow], folder: Path) -> None:
    """Write `plane.png` and `ladder.png`."""
    by_place = tables(rows)
    attacked = {place: table for place, table in by_place.items() if OUR in table and _attacks(table[OUR])}
    save_picture(_figure(by_place, _plane, legend=True), folder / "plane.png", DPI)
    save_picture(_figure(attacked, _ladder), folder / "ladder.png", DPI)


def _figure(by_place: Mapping[Place, Table], panel: Callable[[Axes, Table], None], legend: bool = False) -> Figure:
    """A panel for each level of each model's world."""
    columns = max(1, min(COLUMNS, len(by_place)))
    rows = max(1, -(-len(by_place) // columns))
    figure = Figure((PANEL[0] * columns, PANEL[1] * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (place, table) in zip(axes, by_place.items(), strict=False):
        axis.set_title(", ".join(place), fontsize=8)
        axis.tick_params(labelsize=7)
        panel(axis, table)
    for axis in axes[len(by_place) :]:
        axis.set_axis_off()
    if legend and by_place:
        handles = {
            text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure


def _plane(axis: Axes, table: Table) -> None:
    """To the left is forgotten, above is kept."""
    for line in table.values():
        mark = next((mark for mark in MARKS if line.method in mark.methods), OTHERS)
        at = line.value("target", "exact_match"), line.value("siblings", "kept")
        axis.scatter(*at, s=mark.size, marker=mark.shape, color=mark.color, label=mark.label, zorder=mark.size)
    for other in (best(table, TRAINED_NAMES), best(table, TRAINING_FREE_NAMES)):
        if other is not None:
            at = other.value("target", "exact_match"), other.value("siblings", "kept")
            axis.annotate(other.method, at, fontsize=6, xytext=(4, -7), textcoords="offset points")
    axis.set_xlim(-0.05, 1.05)
    axis.set_ylim(-0.05, 1.1)
    axis.set_xlabel("target, exact match", fontsize=7)
    axis.set_ylabel("siblings kept", fontsize=7)
    axis.grid(alpha=0.3)


def _ladder(axis: Axes, table: Table) -> None:
    """The target's exact match, attack after attack."""
    attacked = {name: line for name, line in table.items() if _attacks(line)}
    trained = best(attacked, TRAINED_NAMES)
    shown = {
        OUR: ("#d62728", "-"),
        Retrained.name: ("#111111", "--"),
        **({} if trained is None else {trained.method: ("#ff7f0e", "-")}),
    }
    for name, (color, dashes) in shown.items():
        if name in attacked:
            attacks = _attacks(attacked[name])
            values = [attacked[name].value("target", f"{_UNDER}{attack}") for attack in attacks]
            names = ["none" if attack == "reconstruction: none" else attack for attack in attacks]  # as without one
            axis.plot(names, values, dashes, color=color, marker=".", markersize=5, linewidth=1.3, label=name)
    axis.tick_params(axis="x", rotation=90, labelsize=6)
    axis.set_ylim(-0.05, 1.05)
    axis.set_ylabel("target, exact match", fontsize=7)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6)


def _attacks(line: MethodSummary) -> Sequence[str]:
    """In the order in which they were run."""
    measures = [measure for group, split, measure in line.means if (group, split) == ("target", REPORTED)]
    return [measure.removeprefix(_UNDER) for measure in measures if measure.startswith(_UNDER)]
