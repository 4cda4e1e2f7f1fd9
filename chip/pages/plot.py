"""Coordinates of a small plot, which a template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 300, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 10, 10, 24
_DECADES = 3  # shown at least and at most: one frame for all, so that plots compare


@dataclass(frozen=True)
class Frame:
    """A box of `width` by `height`, and in it the frame that values are drawn in."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    """The frame's edges."""
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Plot(Frame):
    """A plot in a box of `WIDTH` by `HEIGHT`."""

    lines: tuple[tuple[str, str], ...]
    """What it is, and the path."""


def decay_plot(lines: Sequence[tuple[str, Sequence[float]]], x_ticks: Sequence[int]) -> Plot:
    """How fast descending values fall: each over its first, both axes by the logarithm.

    Args:
        lines: what it is, and its values, positive and descending.
        x_ticks: ascending numbers of values; the last ends the axis.
    """
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def x(number: int) -> float:
        return _LEFT + (right - _LEFT) * math.log(number) / math.log(x_ticks[-1])

    def y(share: float) -> float:
        return _TOP + (bottom - _TOP) * -math.log10(share) / _DECADES

    def path(values: Sequence[float]) -> str:
        shares = [value / values[0] for value in values]
        points = [(x(i), y(share)) for i, share in enumerate(shares, 1) if share >= 10**-_DECADES]
        corners = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        return f"M{corners}" if len(points) > 1 else f"M{corners}h0"  # one point: a dot, by its round cap

    return Plot(
        *(WIDTH, HEIGHT, _LEFT, right, _TOP, bottom),
        tuple((x(number), str(number)) for number in x_ticks),
        tuple((y(10**-decade), _power(decade)) for decade in range(_DECADES + 1)),
        tuple((label, path(values)) for label, values in lines if values),
    )


def _power(decade: int) -> str:
    return "1" if not decade else f"{10**-decade:.{decade}f}"
