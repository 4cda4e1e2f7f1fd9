"""What `chip eval` shows: what is kept and forgotten by group, then what attacks bring back."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chip.evaluation.groups import GROUPS
from chip.evaluation.rows import NO_ATTACK, WORST, Evaluation, ResultRow
from chip.report.comparison import reference_of
from chip.report.text.elements import escaped, plain_table

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


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """The worse of trained and paraphrased questions counts; in brackets, 95 % intervals."""
    console.print(_groups("", evaluation.rows))
    if evaluation.reference is not None:
        console.print(_groups("retrained without the target", evaluation.reference))
    for measure, name in OF_THE_TARGET.items():
        for row in evaluation.rows:
            if (row.measure, row.split, row.attack) == (measure, WORST, NO_ATTACK):
                console.print(Text.assemble(f"{name}: ", _value(row, "bold")))
    if evaluation.attacks:
        console.print(_attacks(evaluation))


def _groups(title: str, rows: Sequence[ResultRow]) -> Table:
    by_split = sorted(rows, key=lambda row: row.split == WORST)  # the worst, where there is one, replaces the others
    shown = {(row.group, row.measure): row for row in by_split if row.attack == NO_ATTACK}
    measures = {name: heading for name, heading in MEASURES.items() if any(name == measure for _, measure in shown)}
    table = plain_table("", "questions", *measures.values(), left=1, title=title, overflow="ellipsis")
    for group in GROUPS:
        if (group, "exact_match") in shown:
            asked_in = (row for row in rows if row.group == group and row.attack == NO_ATTACK and row.split != WORST)
            questions = sum(row.count for row in asked_in if row.measure == "exact_match")
            table.add_row(group, f"{questions:,}", *(_cell(shown.get((group, measure))) for measure in measures))
    return table


def _attacks(evaluation: Evaluation) -> Table:
    table = plain_table("attack", "measure", "target", "retrained", "siblings", overflow="ellipsis")
    reference = reference_of(evaluation)
    for row in evaluation.rows:
        beside = reference.find(row.group, row.split, row.measure, row.attack)
        attack = escaped(row.attack)
        if (row.group, row.split, row.measure) == ("target", WORST, "exact_match") and row.attack != NO_ATTACK:
            siblings = evaluation.find("siblings", row.split, row.measure, row.attack)
            table.add_row(attack, "exact match", _value(row), _cell(beside), _cell(siblings))
        elif row.measure.startswith("auc_"):
            table.add_row(attack, escaped(row.measure.replace("_", " ")), _value(row), _cell(beside), Text("–"))
    return table


def _cell(row: ResultRow | None) -> Text:
    if row is None:
        return Text("–")
    return _value(row) if row.measure in WITH_INTERVAL or row.attack != NO_ATTACK else Text(f"{row.value:.2f}")


def _value(row: ResultRow, style: str = "") -> Text:
    value = Text(f"{row.value:.2f}", style=style)
    if row.low == row.low:  # NaN: there is no interval
        value.append(" ").append(f"[{row.low:.2f}, {row.high:.2f}]", style="dim")
    return value
