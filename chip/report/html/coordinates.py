"""Coordinates of figures on a line, on a plane and along an axis, which a template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chip.evaluation.rows import ResultRow

TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_DECADES = 3  # shown at least and at most: one frame for all, so that plots compare

Span = tuple[float, float]
"""Both ends of an interval."""


@dataclass(frozen=True)
class Frame:
    """A box of `width` by `height`, and in it the edges of the frame that values from 0 to 1 are drawn in."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * _clamped(value)

    def y(self, value: float) -> float:
        """From the bottom upwards."""
        return self.bottom - (self.bottom - self.top) * _clamped(value)

    def x_span(self, row: ResultRow) -> Span | None:
        """The ends of a row's interval; None where it has none that is more than the figure itself."""
        return (self.x(row.low), self.x(row.high)) if row.low < row.high else None

    def y_span(self, row: ResultRow) -> Span | None:
        return (self.y(row.low), self.y(row.high)) if row.low < row.high else None


PLANE = Frame(width=300, height=210, left=40, right=286, top=10, bottom=174)
"""What is forgotten is on the left, and what is retained on top."""
LINE = Frame(width=100, height=0, left=0, right=100, top=0, bottom=0)
"""In % of its length: a line is as wide as the page leaves room for."""
_PLOT = Frame(width=300, height=170, left=38, right=290, top=10, bottom=146)


@dataclass(frozen=True)
class Pair:
    """What a model answers about the target, across, and about what must stay, upwards."""

    target: ResultRow
    retained: ResultRow
    model: str
    """`this model` or `reference`."""


@dataclass(frozen=True)
class Plot:
    """Lines that fall, both axes by the logarithm."""

    frame: Frame
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[tuple[str, str], ...]
    """What it is, and the path."""


def _clamped(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def decay_plot(lines: Sequence[tuple[str, Sequence[float]]], x_ticks: Sequence[int]) -> Plot:
    """How fast descending values fall: each over its first, both axes by the logarithm.

    Args:
        lines: what it is, and its values, positive and descending.
        x_ticks: ascending numbers of values; the last ends the axis.
    """

    def x(number: int) -> float:
        return _PLOT.x(math.log(number) / math.log(x_ticks[-1]))

    def y(share: float) -> float:
        return _PLOT.y(1 + math.log10(share) / _DECADES)

    def path(values: Sequence[float]) -> str:
        shares = [value / values[0] for value in values]
        points = [(x(i), y(share)) for i, share in enumerate(shares, 1) if share >= 10**-_DECADES]
        corners = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        return f"M{corners}" if len(points) > 1 else f"M{corners}h0"  # one point: a dot, by its round cap

    return Plot(
        _PLOT,
        tuple((x(number), str(number)) for number in x_ticks),
        tuple((y(10**-decade), f"{10**-decade:.{decade}f}") for decade in range(_DECADES + 1)),
        tuple((label, path(values)) for label, values in lines if values),
    )
