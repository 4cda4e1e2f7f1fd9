"""Coordinates of figures with their intervals, on a line and on a plane, which a template draws as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chip.evaluation.rows import ResultRow
from chip.pages.plot import Frame

WIDTH, HEIGHT = 300, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 14, 10, 36
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)

Span = tuple[float, float]


@dataclass(frozen=True)
class Dot:
    """A figure on a line, in % of its length: a line is as wide as the page leaves room for."""

    at: float
    span: Span | None
    """Of its interval; None where there is none."""


@dataclass(frozen=True)
class Cross:
    """A figure of the target and one of what must stay, with the interval of each."""

    x: float
    y: float
    x_span: Span | None
    y_span: Span | None
    split: str
    told: str
    """What it is, in words."""


@dataclass(frozen=True)
class Plane(Frame):
    """A plot in a box of `WIDTH` by `HEIGHT`; both axes go from 0 to 1."""

    crosses: tuple[Cross, ...]
    """Of the model."""
    reference: tuple[Cross, ...]
    x_chance: float | None
    y_chance: float | None


@dataclass(frozen=True)
class Pair:
    """What a model answers about the target, across, and about what must stay, upwards."""

    target: ResultRow
    retained: ResultRow
    told: str


def dot(row: ResultRow | None) -> Dot | None:
    """Of a figure from 0 to 1; None where there is none."""
    if row is None or row.value != row.value:
        return None
    span = _span(row)
    return Dot(100 * _inside(row.value), None if span is None else (100 * span[0], 100 * span[1]))


def plane(
    pairs: Sequence[Pair], reference: Sequence[Pair], chance: float | None, retained_chance: float | None
) -> Plane:
    """Where what is forgotten is on the left, and what is kept on top.

    Args:
        chance: of the target, `retained_chance` of what must stay; None is not drawn.
    """
    return Plane(
        *(WIDTH, HEIGHT, _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM),
        tuple((_x(tick), f"{tick:.0%}") for tick in TICKS),
        tuple((_y(tick), f"{tick:.0%}") for tick in TICKS),
        tuple(_cross(pair) for pair in pairs if _known(pair)),
        tuple(_cross(pair) for pair in reference if _known(pair)),
        None if chance is None else _x(chance),
        None if retained_chance is None else _y(retained_chance),
    )


def _cross(pair: Pair) -> Cross:
    across, up = _span(pair.target), _span(pair.retained)
    return Cross(
        _x(pair.target.value),
        _y(pair.retained.value),
        None if across is None else (_x(across[0]), _x(across[1])),
        None if up is None else (_y(up[0]), _y(up[1])),
        pair.target.split,
        pair.told,
    )


def _known(pair: Pair) -> bool:
    return pair.target.value == pair.target.value and pair.retained.value == pair.retained.value


def _span(row: ResultRow) -> Span | None:
    """The ends of its interval, where it has one that is more than the figure itself."""
    return (_inside(row.low), _inside(row.high)) if row.low < row.high else None


def _inside(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _x(value: float) -> float:
    return _LEFT + (WIDTH - _RIGHT - _LEFT) * _inside(value)


def _y(value: float) -> float:
    return _TOP + (HEIGHT - _BOTTOM - _TOP) * (1 - _inside(value))
