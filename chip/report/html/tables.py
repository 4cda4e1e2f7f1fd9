"""The tables of an evaluation: which figures stand where. What they are called is said in the template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from chip.data.record import TASKS
from chip.evaluation.rows import HELD_OUT, NO_ATTACK, RETAINED, SPLITS, WORST, Evaluation, ResultRow
from chip.report.comparison import general_rows, reference_of, same_row, steps
from chip.report.verdict import membership_rows

OF_GROUPS = (
    *("exact_match", "answer_probability", "rouge_l"),
    *(f"{task}_accuracy" for task in TASKS),
    "judged",
)
"""Measured on every group."""

CHANCE = {"exact_match": "chance", **{f"{task}_accuracy": f"{task}_chance" for task in TASKS}}
"""Measure -> what guessing would score on the same questions."""

_OF_THE_TARGET = (
    *("exact_match_above_retrained", "distance_to_retrained", "over_forgetting", "gap", "recovered_gap"),
    *("truth_ratio", "ks_statistic", "ks_p"),
    "forget_retain_harmonic_mean",
)
"""In the order in which they are shown."""

_ALL_SPLITS = (*SPLITS, WORST)

_TOGETHER = (*_OF_THE_TARGET, "exact_match", "answer_probability")
"""Measures that have tables of their own, also under attack; so have those of membership inference."""


@dataclass(frozen=True)
class Line:
    """A line of figures."""

    name: str
    """A group, a measure or an attack's step."""
    cells: tuple[ResultRow | None, ...]
    """None where it was not measured."""
    counts: tuple[int, ...] = ()
    """Questions, by split."""


@dataclass(frozen=True)
class FigureTable:
    """Figures under columns in groups."""

    kind: Literal["groups", "general", "target", "attack", "reference", "membership", "single"]
    """`single`: a measure that a few attacks alone have."""
    columns: tuple[tuple[str, tuple[str, ...]], ...]
    """Title of several columns, and theirs."""
    lines: tuple[Line, ...]
    measure: str = ""
    """Of all figures, where they have but one."""


def tables(evaluation: Evaluation) -> Iterator[FigureTable]:
    """All figures: of the groups, of general ability, of the target, then those under attack."""
    present = {row.measure for row in evaluation.rows}
    yield from (_group_table(evaluation, measure) for measure in OF_GROUPS if measure in present)
    if rows := general_rows(evaluation):
        yield _general_table(evaluation, rows)
    unattacked = {row.measure for row in evaluation.rows if row.attack == NO_ATTACK and row.split != HELD_OUT}
    if names := unattacked.difference(OF_GROUPS, CHANCE.values()):
        yield _target_table(evaluation, sorted(names, key=_order))
    if steps(evaluation):
        yield from (_attack_table(evaluation, measure) for measure in ("exact_match", "answer_probability"))
        if evaluation.reference is not None:
            yield _reference_table(evaluation)
    yield from _single_tables(evaluation)
    if areas := membership_rows(evaluation):
        yield _membership_table(evaluation, areas)


def _models(evaluation: Evaluation) -> list[tuple[str, Evaluation]]:
    reference = [] if evaluation.reference is None else [("reference", reference_of(evaluation))]
    return [("this model", evaluation), *reference]


def _group_table(evaluation: Evaluation, measure: str) -> FigureTable:
    columns = [(title, model, measure) for title, model in _models(evaluation)]
    if measure in CHANCE:
        columns.append(("chance", evaluation, CHANCE[measure]))
    lines = []
    for group in evaluation.groups:
        own = [evaluation.find(group, split, measure) for split in SPLITS]
        if any(own):
            cells = [model.find(group, split, name) for _, model, name in columns for split in SPLITS]
            lines.append(Line(group, tuple(cells), _counts(own)))
    return FigureTable("groups", tuple((title, tuple(SPLITS)) for title, _, _ in columns), tuple(lines), measure)


def _general_table(evaluation: Evaluation, rows: Sequence[ResultRow]) -> FigureTable:
    models = _models(evaluation)
    lines = [Line(row.measure, tuple(same_row(model, row) for _, model in models)) for row in rows]
    return FigureTable("general", tuple((title, (HELD_OUT,)) for title, _ in models), tuple(lines))


def _target_table(evaluation: Evaluation, measures: Sequence[str]) -> FigureTable:
    models = _models(evaluation)
    lines = [
        Line(measure, tuple(_only(model, measure, split) for _, model in models for split in _ALL_SPLITS))
        for measure in measures
    ]
    return FigureTable("target", tuple((title, _ALL_SPLITS) for title, _ in models), tuple(lines))


def _attack_table(evaluation: Evaluation, measure: str) -> FigureTable:
    columns = [(title, model, group) for title, model in _models(evaluation) for group in ("target", "siblings")]
    lines = []
    for attack in (NO_ATTACK, *steps(evaluation)):
        cells = [model.find(group, split, measure, attack) for _, model, group in columns for split in SPLITS]
        counts = _counts(evaluation.find("target", split, measure, attack) for split in SPLITS)
        lines.append(Line(attack, tuple(cells), counts))
    titles = tuple((f"{group}, {title}", tuple(SPLITS)) for title, _, group in columns)
    return FigureTable("attack", titles, tuple(lines), measure)


def _reference_table(evaluation: Evaluation) -> FigureTable:
    measures = {
        "exact_match_above_retrained": "above the reference",
        "distance_to_retrained": "distance from it",
        "recovered_gap": "recovered gap",
    }
    lines = [
        Line(attack, tuple(_only(evaluation, name, split, attack) for name in measures for split in _ALL_SPLITS))
        for attack in (NO_ATTACK, *steps(evaluation))
    ]
    return FigureTable("reference", tuple((title, _ALL_SPLITS) for title in measures.values()), tuple(lines))


def _single_tables(evaluation: Evaluation) -> Iterator[FigureTable]:
    """Leaks, depth, trace and what else attacks measure beside what is answered."""
    steps_of: dict[str, list[str]] = {}
    for row in evaluation.rows:
        alone = row.measure not in _TOGETHER and not row.measure.startswith(("auc_", "true_positives_"))
        if row.attack != NO_ATTACK and row.group in ("target", RETAINED) and alone:
            steps_of.setdefault(row.measure, []).append(row.attack)
    models = _models(evaluation)
    titles = tuple((title, tuple(SPLITS)) for title, _ in models)
    for measure, attacks in steps_of.items():
        lines = []
        for attack in dict.fromkeys(attacks):
            cells = tuple(_only(model, measure, split, attack) for _, model in models for split in SPLITS)
            lines.append(Line(attack, cells, _counts(cells[: len(SPLITS)])))
        yield FigureTable("single", titles, tuple(lines), measure)


def _membership_table(evaluation: Evaluation, areas: Sequence[ResultRow]) -> FigureTable:
    models = _models(evaluation)
    lines = []
    for area in areas:
        score = area.measure.removeprefix("auc_")
        rates = [model.find(area.group, area.split, f"true_positives_{score}", area.attack) for _, model in models]
        own = [same_row(model, area) for _, model in models]
        lines.append(Line(score, tuple(cell for pair in zip(own, rates, strict=True) for cell in pair)))
    return FigureTable("membership", tuple((title, ("AUC", "true positives")) for title, _ in models), tuple(lines))


def _counts(rows: Iterable[ResultRow | None]) -> tuple[int, ...]:
    return tuple(row.count for row in rows if row is not None)


def _order(measure: str) -> tuple[int, str]:
    """Leaks first, then those known, then what else there may be."""
    if "leak_at_" in measure:
        return -1, measure
    return _OF_THE_TARGET.index(measure) if measure in _OF_THE_TARGET else len(_OF_THE_TARGET), measure


def _only(evaluation: Evaluation, measure: str, split: str, attack: str = NO_ATTACK) -> ResultRow | None:
    """The figure of a measure that only one group has, or the target's."""
    wanted = (measure, split, attack)
    rows = [row for row in evaluation.rows if (row.measure, row.split, row.attack) == wanted]
    return next((row for row in rows if row.group == "target"), rows[0] if rows else None)
