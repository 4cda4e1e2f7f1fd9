"""Rows as a table: means over targets, and the worst of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from benchmarks.forgetting.gates import LEARNED, MARGIN
from benchmarks.pretrained.rows import PARAPHRASED, TRAINED, PretrainedRow
from benchmarks.pretrained.subjects import TAUGHT
from benchmarks.pretrained.ways import RETRAINED, UNTOUCHED, WAYS
from benchmarks.reporting import print_table

NONE = "–"
COLUMNS = (
    *("method", "targets", "target", "by name", "siblings", "others", "prose", "KL", "same facts", "ends", "change"),
    *("seconds", "refused"),
)
Key = tuple[str, str, str]
"""Level, target, method."""


def print_tables(rows: Sequence[PretrainedRow]) -> None:
    """A table for each level of each model: paraphrased questions, and in brackets the worst target.

    Target and by name: exact match. Siblings and others: exact match, as a share of the untouched model's. Prose: nats
    a token more.
    """
    known = {(row.level, row.target, row.method): row for row in rows}
    for model, level in dict.fromkeys((row.model, row.level) for row in rows):
        of_level = [row for row in rows if (row.model, row.level) == (model, level)]
        methods = [name for name in WAYS if any(row.method == name for row in of_level)]
        lines = [_line(name, [row for row in of_level if row.method == name], known) for name in methods]
        faults = "; ".join(learning_faults(of_level)) if model == TAUGHT else ""
        print_table(f"{model}, {level}{f': NOT LEARNED: {faults}' if faults else ''}", COLUMNS, lines, {0}, width=200)


def learning_faults(rows: Iterable[PretrainedRow]) -> list[str]:
    """Where a level's model has not learned enough that forgetting can be judged by it; nothing can be forgotten that
    was never known."""
    by_method: dict[str, list[PretrainedRow]] = {}
    for row in rows:
        if row.exact_match is not None:
            by_method.setdefault(row.method, []).append(row)
    faults = []
    bounds = {TRAINED: LEARNED["train"], PARAPHRASED: LEARNED["rephrased"]}
    for split, least in bounds.items():
        known = [known_share(row, split) for row in by_method.get(UNTOUCHED, ())]
        if known and min(known) < least:
            faults.append(f"{split} questions: {min(known):.3f} are answered, {least} must be")
    retrained = {row.target: row for row in by_method.get(RETRAINED, ())}
    for row in by_method.get(UNTOUCHED, ()):
        if row.target in retrained:
            margin = exact(row, "target") - exact(retrained[row.target], "target")
            if margin < MARGIN:
                faults.append(f"{row.target}: answered by {margin:.3f} more than without it, {MARGIN} is the least")
    return faults


def known_share(row: PretrainedRow, split: str) -> float:
    """Exact match, the mean over groups."""
    return fmean(splits[split] for splits in (row.exact_match or {}).values() if split in splits)


def exact(row: PretrainedRow, group: str, split: str = PARAPHRASED) -> float:
    """NaN where it was not measured."""
    return _number((row.exact_match or {}).get(group, {}).get(split))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _line(method: str, rows: Sequence[PretrainedRow], known: Mapping[Key, PretrainedRow]) -> list[str]:
    done = [row for row in rows if row.exact_match is not None]

    def kept(row: PretrainedRow, group: str) -> float:
        untouched = known.get((row.level, row.target, UNTOUCHED))
        before = exact(untouched, group) if untouched is not None else float("nan")
        return exact(row, group) / before if before else float("nan")

    def general(measure: str) -> Callable[[PretrainedRow], float]:
        return lambda row: _number((row.general or {}).get(measure))

    figures: list[tuple[Callable[[PretrainedRow], float], Callable[..., float], str]] = [
        (lambda row: exact(row, "target"), max, ".2f"),
        (lambda row: exact(row, "by name"), max, ".2f"),
        (lambda row: kept(row, "siblings"), min, ".2f"),
        (lambda row: kept(row, "others"), min, ".2f"),
        (general("prose"), max, "+.3f"),
        (general("prose_kl"), max, ".3f"),
        (general("same"), min, ".2f"),
        (lambda row: general("ends")(row) - general("ends_before")(row), min, "+.2f"),
        (lambda row: _number(row.largest_change), max, ".2f"),
        (lambda row: _number(row.seconds), max, ".0f"),
    ]
    cells = [_mean_and_worst([value(row) for row in done], worst, form) for value, worst, form in figures]
    refused = sum(row.refused is not None for row in rows)
    return [method, str(len(rows)), *cells, f"{refused} of {len(rows)}" if refused else ""]


def _mean_and_worst(values: Sequence[float], worst: Callable[..., float], form: str) -> str:
    present = [value for value in values if value == value]
    if not present:
        return NONE
    mean = format(fmean(present), form)
    return mean if len(present) == 1 else f"{mean} ({format(worst(present), form)})"
