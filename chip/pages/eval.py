"""The page of `chip eval`: what was forgotten, what was kept, what attacks bring back, and how that was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip._version import __version__
from chip.evaluation.bootstrap import LEVEL, SAMPLES
from chip.evaluation.groups import GROUPS
from chip.evaluation.rows import NO_ATTACK, SPLITS, WORST, Evaluation, ResultRow
from chip.pages import render
from chip.pages.attacks import KINDS, not_run, step_words, steps
from chip.pages.comparing import CLOSE, by_split, reference_of, told
from chip.pages.groups import meaning_of, name_of, targets_of
from chip.pages.measures import against, attack_tables, membership_scores, tables
from chip.pages.points import TICKS, Dot, Pair, Plane, dot, plane
from chip.pages.verdict import limits, verdict
from chip.pages.words import between, count, listed, number, points, share


@dataclass(frozen=True)
class Strip:
    """One line of a figure: dots on an axis from 0 to 1."""

    title: str
    note: str
    own: Dot | None
    reference: Dot | None
    siblings: Dot | None
    tick: float | None
    """In % of the axis: chance, or a guess."""
    figure: str
    interval: str
    told: str
    """All of it, in words."""


@dataclass(frozen=True)
class TokenRole:
    """Strips under a title."""

    title: str
    explanation: str
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Panel:
    """The plane of one group that must stay."""

    group: str
    plane: Plane


def eval_page(
    found: Evaluation,
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
    return render(
        "eval",
        name=_shown(name, hidden, "A checkpoint"),
        reference=None if found.reference is None else _shown(reference or "", hidden, "a checkpoint"),
        target=targets_of(found.levels),
        names=list(forget) if show_names else [],
        verdict=verdict(found),
        limits=list(limits(found)),
        facts=list(_facts(found)),
        panels=list(_panels(found)),
        groups=list(_groups(found)),
        ladder=list(_ladder(found)),
        membership=_membership(found),
        not_run=not_run(found),
        tables=[*tables(found), *attack_tables(found)],
        measured=list(_measured(found, receipt)),
        kinds=KINDS,
        ticks=TICKS,
        shares=[share(tick) for tick in TICKS],
        numbers=[number(tick) for tick in TICKS],
        close=points(CLOSE),
        version=__version__,
    )


def _shown(name: str, hidden: Sequence[str], instead: str) -> str:
    """The last part of a path, or something else where that would tell who is forgotten."""
    last = Path(name).name or name or instead
    ids = [part for node in hidden for part in node.split("/") if part]
    names = any(re.search(rf"(?<![^\W_]){re.escape(each)}(?![^\W_])", last, re.IGNORECASE) for each in ids)
    return instead if names else last


def _facts(found: Evaluation) -> Iterator[tuple[str, str]]:
    """The few figures that stand on top: figure, what it is."""
    target = found.find("target", WORST, "exact_match")
    if target is None:
        return
    yield share(target.value), "of what is asked about the target is answered"
    other = reference_of(found).find("target", WORST, "exact_match")
    chance = by_split(found, "target", "chance")
    if other is not None:
        yield share(other.value), "by the reference, which never knew it"
    elif chance:
        yield share(max(row.value for row in chance)), "by always giving the most common answer"
    kept = [row for group in GROUPS if group != "target" and (row := found.find(group, WORST, "exact_match"))]
    if kept:
        least = min(kept, key=lambda row: row.value)
        yield share(least.value), f"of what must stay, where it is least: {name_of(least.group)}"
    attacked = [row for step in steps(found) if (row := found.find("target", WORST, "exact_match", step))]
    if attacked:
        yield share(max(row.value for row in attacked)), "of the target at most under attack"


def _panels(found: Evaluation) -> Iterator[Panel]:
    chance = _mean(by_split(found, "target", "chance"))
    for group in GROUPS:
        pairs = list(_pairs(found, group, "this model"))
        if group != "target" and pairs:
            reference = list(_pairs(reference_of(found), group, "reference"))
            guessed = _mean(by_split(found, group, "chance"))
            yield Panel(name_of(group), plane(pairs, reference, chance, guessed))


def _pairs(found: Evaluation, group: str, whose: str) -> Iterator[Pair]:
    for split in SPLITS:
        target, retained = (found.find(each, split, "exact_match") for each in ("target", group))
        if target is not None and retained is not None:
            yield Pair(target, retained, f"{whose}, {split}: target {told(target)}, {name_of(group)} {told(retained)}")


def _mean(rows: Sequence[ResultRow]) -> float | None:
    return sum(row.value for row in rows) / len(rows) if rows else None


def _groups(found: Evaluation) -> Iterator[TokenRole]:
    for group in GROUPS:
        strips = [
            _strip(
                row.split,
                row,
                reference_of(found).find(group, row.split, "exact_match"),
                chance=found.find(group, row.split, "chance"),
                note=count(row.count, "question"),
            )
            for row in by_split(found, group, "exact_match")
        ]
        if strips:
            yield TokenRole(name_of(group).capitalize(), meaning_of(group, found.levels), tuple(strips))


def _ladder(found: Evaluation) -> Iterator[TokenRole]:
    """The steps of each attack, led by what is answered without one."""
    parts = [("Without an attack", "", [NO_ATTACK])]
    parts += [(kind.title, kind.explanation, steps(found, name)) for name, kind in KINDS.items()]
    for title, explanation, attacks in parts:
        strips = [strip for attack in attacks if (strip := _rung(found, attack)) is not None]
        if strips:
            yield TokenRole(title, explanation, tuple(strips))


def _rung(found: Evaluation, attack: str) -> Strip | None:
    own = found.find("target", WORST, "exact_match", attack)
    if own is None:
        return None
    other = reference_of(found).find("target", WORST, "exact_match", attack)
    return _strip(step_words(attack), own, other, siblings=found.find("siblings", WORST, "exact_match", attack))


def _membership(found: Evaluation) -> TokenRole | None:
    scores = membership_scores(found)
    if not scores:
        return None
    other = reference_of(found)
    strips = [
        _strip(measure.title, row, other.find(row.group, row.split, row.measure, row.attack), guess=0.5)
        for _, measure, row in scores
    ]
    return TokenRole(f"The target's own answers against {against(found)}", "", tuple(strips))


def _strip(
    title: str,
    own: ResultRow,
    reference: ResultRow | None,
    chance: ResultRow | None = None,
    siblings: ResultRow | None = None,
    guess: float | None = None,
    note: str = "",
) -> Strip:
    """A line of a figure; around a `guess` its figures are numbers, otherwise shares."""
    tell = share if guess is None else number
    words = [
        f"{title}: this model {told(own, tell)}",
        *([f"the reference {told(reference, tell)}"] if reference is not None else []),
        *([f"chance {share(chance.value)}"] if chance is not None else []),
        *([f"siblings {share(siblings.value)}"] if siblings is not None else []),
    ]
    at = guess if chance is None else chance.value
    return Strip(
        title,
        note,
        dot(own),
        dot(reference),
        dot(siblings),
        None if at is None else 100 * at,
        tell(own.value),
        between(own.low, own.high, tell),
        ", ".join(words),
    )


def _measured(found: Evaluation, receipt: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """How the figures came about: what, and its value."""
    asked = {group: sum(row.count for row in by_split(found, group, "exact_match")) for group in GROUPS}
    target, rest = asked.pop("target"), sum(asked.values())
    yield "Questions", f"{target:,} about the target, {rest:,} about what must stay"
    run = [KINDS[name].title.lower() if name in KINDS else name for name in found.attacks]
    yield "Attacks run", listed(run) if run else "none"
    if missing := not_run(found):
        yield "Attacks not run", listed(missing)
    yield "Intervals", f"{LEVEL:.0%}, bootstrap with {SAMPLES:,} samples, by patient"
    yield "Seed", str(found.seed)
    yield "chip", __version__
    if receipt is not None:
        digest = str(receipt.get("digest"))  # of any form: a folder's receipt may come from anybody
        yield "Receipt's digest", digest if re.fullmatch("[0-9a-f]{64}", digest) else "there is a receipt, without one"
