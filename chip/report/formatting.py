"""Numbers and lists as a sentence has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from chip.data.record import TASKS
from chip.evaluation.rows import ResultRow
from chip.report.comparison import Excess

RETAINED_NAMES = {"siblings": "siblings", "other": "others"}
"""Group that is to stay -> what sentences call those in it."""
_SHARES = {
    *("exact_match", "judged", "chance"),
    *(f"{task}_{figure}" for task in TASKS for figure in ("accuracy", "chance")),
    *("answers_that_end", "answers_that_ended_before", "same_answers"),
}
"""Measures whose figures are shown in %; so are those that begin with one of `_LEAKS`."""
_NATS = frozenset({"nats", "nats_before", "nats_above_before", "kl_to_before"})
_LEAKS = ("leak_at_", "expected_leak_at_")


def count(number: int, what: str) -> str:
    """`1 tensor`, `2,000 tensors`, `2 studies`."""
    return f"{number:,} {what if number == 1 else plural(what)}"


def plural(what: str) -> str:
    """Of a word that takes `s`, or `ies` for its `y`."""
    return f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def share(value: float) -> str:
    """`17%`; finer where that would say none or all of what is neither: `0.4%`, `99.6%`."""
    rounded = f"{100 * value:.0f}%"
    if rounded not in ("0%", "100%") or value in (0, 1):
        return rounded
    finer = f"{100 * value:.1f}%"
    return {"0.0%": "<0.1%", "100.0%": ">99.9%"}.get(finer, finer)


def points(difference: float) -> str:
    """A difference of two shares, without its sign: `6 points`."""
    size = abs(100 * difference)
    digits = f"{size:.0f}" if size >= 1 or not size else f"{size:.1f}" if size >= 0.1 else "less than 0.1"
    return f"{digits} point" if digits == "1" else f"{digits} points"


def _signed(difference: float) -> str:
    """A difference of two shares in points, with its sign where it is below zero: `−4`."""
    return ("−" if difference < 0 else "") + points(difference).split(" point")[0]


def number(value: float) -> str:
    """Two digits after the point, and a true minus."""
    return f"{value:.2f}".replace("-", "−")


def nats(value: float) -> str:
    """Three digits: an edit may cost a model less than a hundredth of a nat a token."""
    return f"{value:.3f}".replace("-", "−")


def p_value(value: float) -> str:
    """Two digits that count, as far as they do: `0.011`, `<0.001`."""
    return f"{value:.2g}" if value >= 0.001 else "<0.001"


def between(low: float, high: float, number_format: Callable[[float], str] = share) -> str:
    """An interval, `11–23%`; empty where there is none, or it is a single value and says nothing."""
    if not low < high:  # also where they are NaN
        return ""
    first, last = number_format(low), number_format(high)
    if first == last:
        return last
    if {first[0], last[0]} & {"−", "<", ">"}:
        return f"{first} to {last}"
    return f"{first.removesuffix('%')}–{last}"


def figure(row: ResultRow) -> str:
    """A row's value, as its measure is shown."""
    return _format_of(row.measure)(row.value)


def measured_on(row: ResultRow) -> str:
    """Of a figure of general ability: `4,017 tokens`, `16 questions`."""
    return count(row.count, "token" if row.measure in _NATS else "question")


def interval(row: ResultRow) -> str:
    """A row's interval, `11–23%`; empty as in `between`."""
    return between(row.low, row.high, _format_of(row.measure))


def with_interval(row: ResultRow) -> str:
    """A row's value with its interval, as far as it has one: `17% (11–23%)`."""
    ends = interval(row)
    return f"{figure(row)} ({ends})" if ends else figure(row)


def _format_of(measure: str) -> Callable[[float], str]:
    if measure in _SHARES or measure.startswith(_LEAKS):
        return share
    if measure in _NATS:
        return nats
    return p_value if measure == "ks_p" else number


def percent(part: float) -> str:
    """Two digits that count: 1.2%, 0.034%, 87%, >1000%."""
    if part == math.inf:
        return "∞"
    value = 100 * part
    if value > 1000:
        return ">1000%"
    if value >= 9.95 or not value:
        return f"{value:.0f}%"
    if value < 0.001:
        return "<0.001%"
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}%"


def shape(sizes: Sequence[int], times: str = "×") -> str:
    """`4×3`; of a tensor without dimensions `scalar`."""
    return times.join(map(str, sizes)) or "scalar"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: `0, 3–5`."""
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def how_many(number: int, what: str) -> str:
    """`a patient`, `an institution`, `2 studies`."""
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}" if number == 1 else f"{number} {plural(what)}"


def excess_points(excess: Excess) -> str:
    """In points, without the sign of the figure: `6 points (1 to 11)`."""
    if not excess.low < excess.high:
        return points(excess.value)
    ends = (excess.low, excess.high) if excess.value >= 0 else (-excess.high, -excess.low)
    return f"{points(excess.value)} ({' to '.join(map(_signed, ends))})"
