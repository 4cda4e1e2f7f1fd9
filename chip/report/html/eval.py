"""The page of `chip eval`: what is forgotten and retained, what attacks bring back, and how that was measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from chip.evaluation.attacks import ATTACKS
from chip.evaluation.bootstrap import LEVEL, SAMPLES
from chip.evaluation.rows import ENOUGH, NO_ATTACK, SPLITS, WORST, Evaluation, ResultRow
from chip.report.comparison import CLOSE, by_split, reference_of, same_row, steps
from chip.report.formatting import how_many
from chip.report.html.coordinates import LINE, PLANE, TICKS, Pair
from chip.report.html.page import render
from chip.report.html.tables import tables
from chip.report.verdict import membership_rows, retained_rows, verdict


@dataclass(frozen=True)
class Strip:
    """One line of a figure: dots on an axis from 0 to 1."""

    own: ResultRow
    reference: ResultRow | None
    siblings: ResultRow | None = None
    chance: ResultRow | None = None


@dataclass(frozen=True)
class PagePart:
    """Strips under a title."""

    name: str
    """A group or an attack; empty for what is answered without one."""
    strips: tuple[Strip, ...]
    help: str = ""
    """What the attack says of itself."""


@dataclass(frozen=True)
class Panel:
    """What is answered about the target, and about one group that must stay."""

    group: str
    pairs: tuple[Pair, ...]
    """Of the model, then of the reference."""
    chance: float | None
    """Of the target."""
    retained_chance: float | None


def eval_page(
    evaluation: Evaluation,
    name: str,
    reference: str | None = None,
    *,
    forget: Sequence[str] = (),
    show_names: bool = False,
    receipt: Mapping[str, Any] | None = None,
) -> str:
    """A whole HTML page, which asks for nothing from elsewhere and runs no script.

    It holds figures only: no question, no answer, and no id but in what is given here.

    Args:
        name, reference: names of the folders; of a path only the last part is shown, and not even that where it holds
            an id of `forget`.
        forget: the nodes as they were asked for. Only shown with `show_names`.
        receipt: what `receipt_in` found in the folder, of any form.
    """
    hidden = () if show_names else forget
    compared = evaluation.reference is not None
    return render(
        "eval",
        name=_shown(name, hidden, "A checkpoint"),
        reference=_shown(reference or "", hidden, "a checkpoint") if compared else None,
        names=list(forget) if show_names else [],
        digest=None if receipt is None else _digest(receipt),
        **figures_shown(evaluation),
    )


def figures_shown(evaluation: Evaluation) -> dict[str, Any]:
    """All that the templates show of it."""
    return {
        "evaluation": evaluation,
        "target": [how_many(number, level) for level, number in Counter(evaluation.levels).items()],
        "levels": sorted(set(evaluation.levels)),
        "verdict": verdict(evaluation),
        "key_figures": _key_figures(evaluation),
        "panels": list(_panels(evaluation)),
        "groups": list(_groups(evaluation)),
        "ladder": list(_ladder(evaluation)),
        "areas": _areas(evaluation),
        "tables": list(tables(evaluation)),
        "questions": _questions(evaluation),
        "enough": ENOUGH,
        "ticks": TICKS,
        "axis": LINE,
        "plane": PLANE,
        "close": CLOSE,
        "level": LEVEL,
        "samples": SAMPLES,
    }


def _questions(evaluation: Evaluation) -> tuple[int, int]:
    """How many were asked about the target, and about what must stay."""
    counts = {
        group: sum(row.count for row in by_split(evaluation, group, "exact_match")) for group in evaluation.groups
    }
    target = counts.get("target", 0)
    return target, sum(counts.values()) - target


def _shown(name: str, hidden: Sequence[str], instead: str) -> str:
    """The last part of a path, or something else where that would tell who is forgotten."""
    last = Path(name).name or name or instead
    ids = [part for node in hidden for part in node.split("/") if part]
    names = any(re.search(rf"(?<![^\W_]){re.escape(id_)}(?![^\W_])", last, re.IGNORECASE) for id_ in ids)
    return instead if names else last


def _digest(receipt: Mapping[str, Any]) -> str:
    """A receipt's digest; empty where it has none: a folder's receipt may come from anybody."""
    digest = str(receipt.get("digest"))
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else ""


def _key_figures(evaluation: Evaluation) -> dict[str, ResultRow | None] | None:
    """The few figures that stand on top, of the worse wording; none where nothing was asked about the target."""
    target = evaluation.find("target", WORST, "exact_match")
    if target is None:
        return None
    attacked = (evaluation.find("target", WORST, "exact_match", step) for step in steps(evaluation))
    return {
        "target": target,
        "reference": same_row(reference_of(evaluation), target),
        "chance": max(by_split(evaluation, "target", "chance"), key=lambda row: row.value, default=None),
        "least_retained": min(retained_rows(evaluation), key=lambda row: row.value, default=None),
        "strongest_attack": max((row for row in attacked if row), key=lambda row: row.value, default=None),
    }


def _panels(evaluation: Evaluation) -> Iterator[Panel]:
    chance = _mean(by_split(evaluation, "target", "chance"))
    for group in (group for group in evaluation.groups if group != "target"):
        own = list(_pairs(evaluation, group, "this model"))
        if own:
            pairs = (*own, *_pairs(reference_of(evaluation), group, "reference"))
            yield Panel(group, pairs, chance, _mean(by_split(evaluation, group, "chance")))


def _pairs(evaluation: Evaluation, group: str, model: str) -> Iterator[Pair]:
    for split in SPLITS:
        target, retained = (evaluation.find(name, split, "exact_match") for name in ("target", group))
        if target and retained and not (isnan(target.value) or isnan(retained.value)):
            yield Pair(target, retained, model)


def _mean(rows: Sequence[ResultRow]) -> float | None:
    return sum(row.value for row in rows) / len(rows) if rows else None


def _groups(evaluation: Evaluation) -> Iterator[PagePart]:
    reference = reference_of(evaluation)
    for group in evaluation.groups:
        strips = [
            Strip(row, same_row(reference, row), chance=evaluation.find(group, row.split, "chance"))
            for row in by_split(evaluation, group, "exact_match")
        ]
        if strips:
            yield PagePart(group, tuple(strips))


def _ladder(evaluation: Evaluation) -> Iterator[PagePart]:
    """The steps of each attack, led by what is answered without one."""
    reference = reference_of(evaluation)
    for attack, names in (("", [NO_ATTACK]), *((attack, steps(evaluation, attack)) for attack in ATTACKS)):
        rows = (evaluation.find("target", WORST, "exact_match", step) for step in names)
        strips = [
            Strip(row, same_row(reference, row), evaluation.find("siblings", WORST, "exact_match", row.attack))
            for row in rows
            if row is not None
        ]
        if strips:
            yield PagePart(attack, tuple(strips), ATTACKS[attack].help if attack else "")


def _areas(evaluation: Evaluation) -> list[Strip]:
    """Of each score of membership inference."""
    reference = reference_of(evaluation)
    return [Strip(row, same_row(reference, row)) for row in membership_rows(evaluation)]
