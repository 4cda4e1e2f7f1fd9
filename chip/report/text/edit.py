"""What `chip edit` shows: what is answered before and after, what changed, and where it was written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chip.checkpoint.model_card import settings_line
from chip.report.formatting import count
from chip.report.text.elements import escaped, plain_table

if TYPE_CHECKING:  # these bring torch
    from chip.evaluation.summary import BeforeAfter
    from chip.report.edit_report import EditReport


def print_edit(report: EditReport, console: Console) -> None:
    """A table of the groups, a table of the changed tensors, and the settings."""
    console.print(_groups(report))
    console.print(_changes(report))
    for note in _notes(report):
        console.print(escaped(note, "dim"))
    console.print(_outcome(report))


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


def _outcome(report: EditReport) -> Text:
    tensors = count(len(report.relative_change), "tensor")
    if report.output is None:
        return Text.assemble("dry run: ", (tensors, "bold"), f" would change, nothing written ({report.seconds:.0f} s)")
    return Text.assemble("wrote ", escaped(report.output, "bold"), f": {tensors} changed, {report.seconds:.0f} s")
