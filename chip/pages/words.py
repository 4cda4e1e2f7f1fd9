"""Figures and lists as a sentence tells them."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def count(number: int, what: str) -> str:
    """`1 tensor`, `2,000 tensors`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def share(value: float) -> str:
    """`17%`; finer where that would say none or all of what is neither: `0.4%`, `99.6%`."""
    told = f"{100 * value:.0f}%"
    if told not in ("0%", "100%") or value in (0, 1):
        return told
    finer = f"{100 * value:.1f}%"
    return {"0.0%": "<0.1%", "100.0%": ">99.9%"}.get(finer, finer)


def points(difference: float) -> str:
    """A difference of two shares, without its sign: `6 points`."""
    size = abs(100 * difference)
    told = f"{size:.0f}" if size >= 1 or not size else f"{size:.1f}" if size >= 0.1 else "less than 0.1"
    return f"{told} point" if told == "1" else f"{told} points"


def signed(difference: float) -> str:
    """A difference of two shares in points, with its sign where it is below zero: `−4`."""
    return ("−" if difference < 0 else "") + points(difference).split(" point")[0]


def number(value: float) -> str:
    """Two digits after the point, and a true minus."""
    return f"{value:.2f}".replace("-", "−")


def p_value(value: float) -> str:
    """Two digits that count, as far as they do: `0.011`, `<0.001`."""
    return f"{value:.2g}" if value >= 0.001 else "<0.001"


def between(low: float, high: float, told: Callable[[float], str] = share) -> str:
    """An interval, `11–23%`; empty where there is none, or it is a single value and says nothing."""
    if not low < high:  # also where they are NaN
        return ""
    first, last = told(low), told(high)
    if first == last:
        return last
    if {first[0], last[0]} & {"−", "<", ">"}:
        return f"{first} to {last}"
    return f"{first.removesuffix('%')}–{last}"
