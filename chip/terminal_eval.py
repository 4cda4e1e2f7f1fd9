"""An evaluation in the terminal: what is kept and forgotten by group, then what attacks bring back."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from chip.evaluation.groups import GROUPS
from chip.evaluation.rows import NO_ATTACK, WORST, Evaluation, ResultRow
from chip.terminal import out

MEASURES = {
    "chance": "chance",
    "exact_match": "exact match",
    "answer_probability": "answer probability",
    "rouge_l": "ROUGE-L",
    "classification_accuracy": "classification",
    "cloze_accuracy": "cloze",
    "judged": "judged right",
}
WITH_INTERVAL = ("exact_match", "answer_probability", "rouge_l", "judged")
OF_THE_TARGET = {"leak_at_16": "leaked in 16 draws", "truth_ratio": "truth ratio", "recovered_gap": "recovered gap"}


def print_evaluation(found: Evaluation) -> None:
    """The worse of trained and paraphrased questions counts; in brackets, 95 % intervals."""
    out.print(_groups("", found.rows))
    if found.reference is not None:
        out.print(_groups("retrained without the target", found.reference))
    for measure, name in OF_THE_TARGET.items():
        for row in found.rows:
            if (row.measure, row.split, row.attack) == (measure, WORST, NO_ATTACK):
                out.print(f"{name}: [bold]{_value(row)}[/]")
    if found.attacks:
        out.print(_attacks(found))


def _groups(title: str, rows: Sequence[ResultRow]) -> Table:
    shown = {(row.group, row.measure): row for row in sorted(rows, key=_split_order) if row.attack == NO_ATTACK}
    measures = {measure: name for measure, name in MEASURES.items() if any(measure == each for _, each in shown)}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title or None, title_justify="left")
    table.add_column("")
    for name in ("questions", *measures.values()):
        table.add_column(name, justify="right")
    for group in GROUPS:
        if (group, "exact_match") in shown:
            count = sum(row.count for row in rows if _plain(row, group) and row.split != WORST)
            table.add_row(group, f"{count:,}", *(_cell(shown.get((group, measure))) for measure in measures))
    return table


def _plain(row: ResultRow, group: str) -> bool:
    return (row.group, row.measure, row.attack) == (group, "exact_match", NO_ATTACK)


def _split_order(row: ResultRow) -> bool:
    """The worst split last: it is the one that is shown, where there is one."""
    return row.split == WORST


def _attacks(found: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(("attack", "measure", "target", "retrained", "siblings")):
        table.add_column(name, justify="left" if number < 2 else "right")
    for row in found.rows:
        if row.attack != NO_ATTACK and row.group == "target" and row.split == WORST and row.measure == "exact_match":
            other = _same(row, "target", found.reference or ())
            siblings = _same(row, "siblings", found.rows)
            table.add_row(
                row.attack, "exact match", _value(row), *("–" if x is None else _value(x) for x in (other, siblings))
            )
        elif row.measure.startswith("auc_"):
            other = _same(row, row.group, found.reference or ())
            table.add_row(row.attack, row.measure.replace("_", " "), _value(row), _cell(other), "–")
    return table


def _same(row: ResultRow, group: str, rows: Sequence[ResultRow]) -> ResultRow | None:
    wanted = (group, row.split, row.measure, row.attack)
    return next((each for each in rows if (each.group, each.split, each.measure, each.attack) == wanted), None)


def _cell(row: ResultRow | None) -> str:
    if row is None:
        return "–"
    return _value(row) if row.measure in WITH_INTERVAL or row.attack != NO_ATTACK else f"{row.value:.2f}"


def _value(row: ResultRow) -> str:
    interval = f" [dim]\\[{row.low:.2f}, {row.high:.2f}][/]" if row.low == row.low else ""  # NaN: there is none
    return f"{row.value:.2f}{interval}"
