"""What `chip edit` shows: what is answered before and after, what changed, and where it was written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chip.checkpoint.contents import describe_left_out
from chip.checkpoint.model_card import settings_line
from chip.report.formatting import RETAINED_NAMES, count
from chip.report.text.elements import escaped, plain_table

if TYPE_CHECKING:  # these bring torch
    from chip.evaluation.summary import BeforeAfter
    from chip.report.edit_report import EditReport
    from chip.report.outcome import Outcome

LIMITS = {
    "max_retain_drop": "a stronger edit would have cost those who stay more than --max-retain-drop allows",
    "never_trained": "a stronger edit would have made the answers less probable than never trained on",
    "strongest": "nothing stronger was tried",
    "weakest": "nothing weaker was tried",
}
"""What bound the search -> what the last line says of it."""


def print_edit(report: EditReport, console: Console) -> None:
    """A table of the groups, a table of the changed tensors, and the settings."""
    console.print(_groups(report))
    console.print(_changes(report))
    for note in _notes(report):
        console.print(escaped(note, "dim"))
    for line in (_written(report), *(() if report.output is None else (_achieved(report),))):
        console.print(line, soft_wrap=not console.is_terminal)  # piped, the last line is one, for a script to take


def _groups(report: EditReport) -> Table:
    table = plain_table("", "questions", "records", "chance", "exact match", "answer probability")
    for group, results in report.groups.items():
        for split, result in results.items():
            table.add_row(
                group,
                split,
                f"{result.count:,}",
                f"{result.chance:.2f}",
                _before_after(result.exact_match),
                _before_after(result.answer_probability),
                end_section=split == list(results)[-1],
            )
    return table


def _before_after(measure: BeforeAfter) -> Text:
    before = f"{measure.before:.2f}"
    return Text(before) if measure.after is None else Text.assemble(before, " → ", (f"{measure.after:.2f}", "bold"))


def _changes(report: EditReport) -> Table:
    table = plain_table("changed tensor", "‖ΔW‖ / ‖W‖", *(["‖QᵀW′‖ / ‖QᵀW‖"] if report.remaining else []))
    for name, change in report.relative_change.items():
        remaining = [f"{report.remaining[name]:.1e}"] if name in report.remaining else []
        table.add_row(escaped(name), f"{change:.3f}", *remaining)
    return table


def _notes(report: EditReport) -> Iterator[str]:
    yield f"{report.method}: {settings_line(report.settings)}"
    if report.choice is not None:
        setting = report.choice.setting.replace("_", " ")
        yield f"{setting} {report.choice.value:g} was chosen: {report.choice.reason}"
    if not report.shares_images:
        yield "each question ran its own image: in this family the image sees the question"
    if report.left_out:
        yield describe_left_out(report.left_out)


def _written(report: EditReport) -> Text:
    tensors, seconds = count(len(report.relative_change), "tensor"), f"{report.seconds:.0f} s"
    if report.output is not None:
        return Text.assemble("wrote ", escaped(report.output, "bold"), f": {tensors} changed, {seconds}")
    known = f"the model gives {report.outcome.known:.2f} of the target's answers, {_never_trained(report.outcome)}"
    return Text.assemble("dry run: ", (tensors, "bold"), f" would change, nothing written ({seconds}); {known}")


def _achieved(report: EditReport) -> Text:
    """What is left and what is kept, what bound the search, and what to do where too much is left."""
    outcome = report.outcome
    verdict = (
        ("forgotten", "bold green") if outcome.forgotten else ("not forgotten, the target is still there", "bold red")
    )
    questions = f"{outcome.left:.2f} of the target's answers ({outcome.left_of} questions)"
    left = f"the model gives {questions}, {_never_trained(outcome)}"
    retained = outcome.retained.items()
    parts = (
        left if outcome.forgotten else f"{left}, and {outcome.max_left:.2f} would count as forgotten",
        ", ".join(f"{RETAINED_NAMES[group]} keep {kept.after:.2f} of {kept.before:.2f}" for group, kept in retained),
        *_excess(outcome),
        "" if outcome.limit is None else LIMITS[outcome.limit],
        "" if outcome.forgotten else _advice(report),
    )
    return Text.assemble(verdict, f": {'; '.join(filter(None, parts))}")


def _never_trained(outcome: Outcome) -> str:
    return f"one never trained on it would give {outcome.never_trained:.2f}"


def _excess(outcome: Outcome) -> Iterator[str]:
    for group, lost in outcome.excess.items():
        why = "within the error of the trials" if lost <= outcome.tolerated[group] else "accepted"
        loss = f"{RETAINED_NAMES[group]} lose {lost:.3f} of their answers' probability"
        yield f"{loss}, where {outcome.allowed[group]:g} was allowed ({why})"


def _advice(report: EditReport) -> str:
    if report.choice is None:
        given = report.settings.get("retain_weight")
        lower = "stronger settings or another --method" if given is None else f"a --retain-weight below {given:g}"
        return f"{lower} may forget more"
    option = f"--{report.choice.setting.replace('_', '-')}"
    allow = "allow more with --max-retain-drop, or " if report.outcome.limit == "max_retain_drop" else ""
    return f"to forget more, {allow}give another {option} than {report.choice.value:g}"
