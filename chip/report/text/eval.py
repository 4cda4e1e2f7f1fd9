"""What `chip eval` shows: what is kept and forgotten by group and by kind of question, then what attacks bring back."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chip.data.record import TASKS
from chip.evaluation.rows import ENOUGH, NO_ATTACK, WORST, Evaluation, ResultRow
from chip.report.comparison import by_split, general_rows, reference_of, same_row
from chip.report.formatting import listed, measured_on
from chip.report.text.elements import escaped, plain_table

MEASURES = {
    "chance": "chance",
    "exact_match": "exact match",
    "answer_probability": "answer probability",
    "rouge_l": "ROUGE-L",
    "judged": "judged right",
}
WITH_INTERVAL = ("exact_match", "answer_probability", "rouge_l", "judged")
OF_THE_TARGET = {"leak_at_16": "leaked in 16 draws", "truth_ratio": "truth ratio", "recovered_gap": "recovered gap"}
GENERAL_MEASURES = {
    "nats": "nats a token",
    "nats_before": "nats a token before the edit",
    "nats_above_before": "nats a token more than before",
    "kl_to_before": "KL to before, nats a token",
    "answers_that_end": "answers that end",
    "answers_that_ended_before": "answers that ended before",
    "same_answers": "answers as before",
}
OF_ATTACKS = {"unlearning_depth_score": "depth score (UDS)", "trace_auc_": "AUC by ", "auc_": "AUC by "}
"""Measures, or how they begin, that attacks have beside exact match -> what the table calls them."""


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """The worse of trained and paraphrased questions counts; in brackets, 95 % intervals."""
    console.print(_groups("", evaluation))
    if evaluation.reference is not None:
        console.print(_groups("retrained without the target", reference_of(evaluation)))
    tasks = _tasks(evaluation)
    if tasks.rows:
        console.print(tasks)
        if evaluation.few_questions:
            console.print(Text(_few_questions(evaluation)))
    for measure, name in OF_THE_TARGET.items():
        for row in evaluation.rows:
            if (row.measure, row.split, row.attack) == (measure, WORST, NO_ATTACK):
                console.print(Text.assemble(f"{name}: ", _value(row, "bold")))
    _print_distance(evaluation, console)
    if general_rows(evaluation):
        console.print(_general(evaluation))
    if evaluation.attacks:
        console.print(_attacks(evaluation))
    for attack, why in evaluation.skipped.items():
        console.print(Text.assemble("skipped: ", escaped(attack), ": ", escaped(why)))


def _groups(title: str, evaluation: Evaluation) -> Table:
    by_worst = sorted(evaluation.rows, key=lambda row: row.split == WORST)  # it replaces the others, where it is there
    shown = {(row.group, row.measure): row for row in by_worst if row.attack == NO_ATTACK}
    measures = {name: heading for name, heading in MEASURES.items() if any(name == measure for _, measure in shown)}
    table = plain_table("", "questions", *measures.values(), left=1, title=title, overflow="ellipsis")
    for group in evaluation.groups:
        if (group, "exact_match") in shown:
            questions = sum(row.count for row in by_split(evaluation, group, "exact_match"))
            table.add_row(escaped(group), f"{questions:,}", *(_cell(shown.get((group, name))) for name in measures))
    return table


def _general(evaluation: Evaluation) -> Table:
    """What no record holds: it has no answers to match, and a change may show in the third digit alone."""
    compared = ("retrained",) if evaluation.reference is not None else ()
    table = plain_table("general ability", "measured on", "this model", *compared)
    reference = reference_of(evaluation)
    for row in general_rows(evaluation):
        other = same_row(reference, row)
        beside = ("–" if other is None else _value(other, digits=3),) if compared else ()
        name = escaped(GENERAL_MEASURES.get(row.measure, row.measure))
        table.add_row(name, measured_on(row), _value(row, digits=3), *beside)
    return table


def _tasks(evaluation: Evaluation) -> Table:
    """Each kind of question apart: pooled, one that is still answered hides among those that are not."""
    compared = ("retrained",) if evaluation.reference is not None else ()
    table = plain_table("by kind", "", "questions", "chance", "answered", *compared)
    reference = reference_of(evaluation)
    for group in evaluation.groups:
        for task in TASKS:
            own = evaluation.find(group, WORST, f"{task}_accuracy")
            if own is None:
                continue
            questions = sum(row.count for row in by_split(evaluation, group, own.measure))
            chance = max((row.value for row in by_split(evaluation, group, f"{task}_chance")), default=None)
            beside = (_cell(same_row(reference, own), interval=True),) if compared else ()
            known = "–" if chance is None else f"{chance:.2f}"
            table.add_row(escaped(group), task, f"{questions:,}", known, _value(own), *beside)
    return table


def _few_questions(evaluation: Evaluation) -> str:
    counts = [f"{count or 'no'} {task}" for task, count in evaluation.few_questions.items()]
    return f"about the target: {listed(counts)} questions; fewer than {ENOUGH} of a kind say little of that kind"


def _print_distance(evaluation: Evaluation, console: Console) -> None:
    """How far from the retrained model: the recovered gap counts what lies below as success."""
    away = evaluation.find("target", WORST, "distance_to_retrained")
    above = evaluation.find("target", WORST, "exact_match_above_retrained")
    if away is None or above is None:
        return
    side = "" if above.value >= 0 else ", below: over-forgetting"
    if side and not above.high < 0:
        side += " (not certain)"
    console.print(Text.assemble("|target − retrained|: ", _value(away, "bold"), side))


def _attacks(evaluation: Evaluation) -> Table:
    table = plain_table("attack", "measure", "target", "retrained", "siblings", overflow="ellipsis")
    reference = reference_of(evaluation)
    for row, name in _attack_rows(evaluation):
        siblings = evaluation.find("siblings", row.split, row.measure, row.attack)
        beside = reference.find(row.group, row.split, row.measure, row.attack)
        table.add_row(escaped(row.attack), escaped(name), _value(row), _cell(beside), _cell(siblings))
    return table


def _attack_rows(evaluation: Evaluation) -> Iterator[tuple[ResultRow, str]]:
    """Each row of the table, with what its measure is called."""
    largest = max((int(k) for row in evaluation.rows if (k := _leak(row))), default=0)
    for row in evaluation.rows:
        if row.attack == NO_ATTACK:
            continue
        if (row.group, row.split, row.measure) == ("target", WORST, "exact_match"):
            yield row, "exact match"
        elif (row.group, row.split) == ("target", WORST) and _leak(row) == str(largest):
            yield row, f"leaked in {largest} draws"
        for start, name in OF_ATTACKS.items():
            if row.measure.startswith(start) and (row.split == WORST or start.endswith("auc_")):
                yield row, f"{name}{row.measure.removeprefix(start).replace('_', ' ')}"
                break


def _leak(row: ResultRow) -> str:
    """k, of a leak@k under attack."""
    match = re.fullmatch(r"leak_at_(\d+)", row.measure)
    return match[1] if match and row.attack != NO_ATTACK else ""


def _cell(row: ResultRow | None, interval: bool = False) -> Text:
    if row is None:
        return Text("–")
    with_interval = interval or row.measure in WITH_INTERVAL or row.attack != NO_ATTACK
    return _value(row) if with_interval else Text(f"{row.value:.2f}")


def _value(row: ResultRow, style: str = "", digits: int = 2) -> Text:
    value = Text(f"{row.value:.{digits}f}", style=style)
    if row.low == row.low:  # NaN: there is no interval
        value.append(" ").append(f"[{row.low:.{digits}f}, {row.high:.{digits}f}]", style="dim")
    return value
