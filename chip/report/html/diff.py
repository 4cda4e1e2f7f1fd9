"""The page of `chip diff`: what differs, where it lies, what shape it has, and the receipt of who made it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from chip.checkpoint.change_map import SHADES, ChangeMap, Sum, place_of, shortest_ends
from chip.checkpoint.diff import CheckpointDiff
from chip.checkpoint.tensor_diff import DIRECTIONS, TensorDiff
from chip.report.html.coordinates import Plot, decay_plot
from chip.report.html.page import render
from chip.report.html.receipt import shown_receipt

_MOST_LINES = 40  # in one plot: more are no longer lines
_MOST_NAMES = 200  # in a list of what is only in one


@dataclass(frozen=True)
class ChangedPlace:
    """One stack of layers, and what changed in it."""

    title: str
    layers: tuple[int, ...]
    depth: int
    """Number of all its layers."""
    kinds: tuple[str, ...]
    relative_change: float

    @property
    def all_layers(self) -> bool:
        return len(self.layers) == self.depth

    @property
    def bare(self) -> bool:
        """Whether the layers have no parts to name."""
        return {*self.kinds} <= {"weight", "bias"}


@dataclass(frozen=True)
class KeyFigures:
    """The few figures that stand on top."""

    relative_change: float
    """Of all that changed."""
    effective_rank: float | None
    """Median; None where no matrix changed."""
    directions: int
    energy: float
    """Share of a change in so many directions, median."""


@dataclass(frozen=True)
class Spectra:
    """The singular values of all changes of one kind."""

    title: str
    group: str
    plot: Plot
    matrices: int
    drawn: int
    energy: tuple[tuple[int, float], ...]
    """Medians over the matrices."""
    effective_rank: float
    """Median."""


def diff_page(difference: CheckpointDiff, a: str, b: str, receipt: Mapping[str, Any] | None) -> str:
    """A whole HTML page, which asks for nothing from elsewhere and runs no script.

    Args:
        a, b: names of the folders; of a path only the last part is shown.
        receipt: what `receipt_in` found in `b`, of any form: what is missing in it is left out.
    """
    changed = {tensor.name_in_b or tensor.name for tensor in difference.changed}
    return render(
        "diff",
        a=Path(a).name or a,
        b=Path(b).name or b,
        difference=difference,
        figures=_key_figures(difference.changed),
        largest=max(difference.changed, key=lambda tensor: tensor.relative_change, default=None),
        places=list(_places(difference.map)),
        map=difference.map,
        shades=range(1, SHADES + 1),
        spectra=list(_spectra(difference)),
        directions=DIRECTIONS,
        receipt=None if receipt is None else shown_receipt(receipt, changed),
        most_names=_MOST_NAMES,
        infinity=math.inf,
    )


def _places(changes: ChangeMap) -> Iterator[ChangedPlace]:
    for grid in changes.grids:
        yield ChangedPlace(
            grid.title,
            layers=tuple(layer for layer, total in grid.by_layer.items() if total.changed),
            depth=len(grid.layers),
            kinds=tuple(grid.labels[kind] for kind, total in grid.by_kind.items() if total.changed),
            relative_change=grid.total.relative_change,
        )


def _key_figures(changed: Sequence[TensorDiff]) -> KeyFigures | None:
    if not changed:
        return None
    ranks = [tensor.effective_rank for tensor in changed if tensor.effective_rank is not None]
    shares = [dict(tensor.energy)[DIRECTIONS[1]] for tensor in changed if tensor.energy]
    return KeyFigures(
        Sum.of(changed).relative_change,
        effective_rank=median(ranks) if ranks else None,
        directions=DIRECTIONS[1],
        energy=median(shares) if shares else 0.0,
    )


def _spectra(difference: CheckpointDiff) -> Iterator[Spectra]:
    """One plot for each kind in each group; what stands outside the layers has one of its own each."""
    families: defaultdict[tuple[str, str], list[tuple[str, TensorDiff]]] = defaultdict(list)
    for tensor in difference.changed:
        if tensor.spectrum:
            place = place_of(tensor.name)
            title = "" if place.layer is None else f"layer {place.layer}"
            families[place.group, place.kind].append((title, tensor))
    outside = [*difference.map.outside]
    titles = [(grid.group, kind, grid.labels[kind], grid.title) for grid in difference.map.grids for kind in grid.kinds]
    titles += [("", kind, label, "outside the layers") for kind, label in shortest_ends(outside).items()]
    for group, kind, label, title in titles:
        if members := families.get((group, kind)):
            yield _family(label, title, members)


def _family(title: str, group: str, members: Sequence[tuple[str, TensorDiff]]) -> Spectra:
    largest = sorted(members, key=lambda member: -member[1].relative_change)[:_MOST_LINES]
    lines = [(label, tensor.spectrum) for label, tensor in largest]
    return Spectra(
        title,
        group,
        decay_plot(lines, DIRECTIONS),
        len(members),
        len(lines),
        tuple((k, median(dict(tensor.energy)[k] for _, tensor in members)) for k in DIRECTIONS),
        median(tensor.effective_rank or 0.0 for _, tensor in members),
    )
