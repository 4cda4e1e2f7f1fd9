"""Figures as a ledger keeps them: the rows of an evaluation as lists, and numbers that JSON has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from chip.errors import InputError
from chip.evaluation.rows import Evaluation, ResultRow
from chip.report.html.request import Measured, Reached

if TYPE_CHECKING:  # brings torch
    from chip.report.edit_report import EditReport

_WORDINGS = {"trained": "as trained", "paraphrased": "worded otherwise"}
_DIGITS = 6  # that count: intervals are wider by far


def edit_figures(report: EditReport) -> dict[str, Any]:
    """What `chip edit` has measured: outcome, groups, and what general data lost."""
    content = report.to_json()
    figures: dict[str, Any] = _plain({name: content[name] for name in ("outcome", "groups", "general")})
    return figures


def evaluation_figures(evaluation: Evaluation) -> dict[str, Any]:
    """All figures of an evaluation; a row is a list of what `ResultRow` has, in its order."""
    reference = evaluation.reference
    return {
        "attacks": list(evaluation.attacks),
        "seed": evaluation.seed,
        "levels": list(evaluation.levels),
        "skipped": dict(evaluation.skipped),
        "rows": _plain([astuple(row) for row in evaluation.rows]),
        "reference": None if reference is None else _plain([astuple(row) for row in reference]),
    }


def evaluation_of(figures: Mapping[str, Any]) -> Evaluation:
    """The evaluation of which these are the figures. Raises `InputError` where they are of another form."""
    try:
        reference = figures["reference"]
        return Evaluation(
            tuple(map(_row, figures["rows"])),
            None if reference is None else tuple(map(_row, reference)),
            tuple(map(str, figures["attacks"])),
            int(figures["seed"]),
            tuple(map(str, figures["levels"])),
            {str(name): str(why) for name, why in figures["skipped"].items()},
        )
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError("the ledger's figures of an evaluation are not as this version of chip writes them") from error


def measured_of(figures: Mapping[str, Any] | None) -> tuple[tuple[Measured, ...], Reached | None]:
    """What an edit measured, of its figures. Raises `InputError` where they are of another form."""
    if figures is None:
        return (), None
    try:
        rows = tuple(
            _measured(group, split, result)
            for group, splits in figures["groups"].items()
            for split, result in splits.items()
        )
        outcome = figures["outcome"]
        return rows, Reached(*(float(outcome[name]) for name in ("left", "never_trained", "max_left")))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError("the ledger's figures of an edit are not as this version of chip writes them") from error


def _measured(group: str, split: str, result: Mapping[str, Any]) -> Measured:
    match = result["exact_match"]
    before, after, chance = (float(value) for value in (match["before"], match["after"], result["chance"]))
    return Measured(group, _WORDINGS.get(split, split), int(result["count"]), before, after, chance)


def _row(content: Sequence[Any]) -> ResultRow:
    *names, value, low, high, count = content
    group, split, measure, attack = map(str, names)
    value, low, high = (math.nan if number is None else float(number) for number in (value, low, high))
    return ResultRow(group, split, measure, attack, value, low, high, int(count))


def _plain(value: Any) -> Any:
    """The same with `None` for NaN and infinities, and numbers of a few digits."""
    match value:
        case Mapping():
            return {name: _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case float():
            return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
