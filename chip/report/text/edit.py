"""What `chip edit` shows: what is answered before and after, what changed, and where it was written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chip.checkpoint.contents import describe_left_out
from chip.checkpoint.model_card import settings_line
from chip.ledger.requests import short
from chip.report.formatting import RETAINED_NAMES, count
from chip.report.spent import lost_in
from chip.report.text.elements import escaped, plain_table

if TYPE_CHECKING:  # these bring torch
    from chip.general.loss import GeneralLoss
    from chip.methods.trial import Choice
    from chip.report.edit_report import EditReport, Sampled
    from chip.report.outcome import Outcome

LIMITS = {
    "max_retain_drop": "a stronger edit would have cost those who stay more than --max-retain-drop allows",
    "max_general_kl": "a stronger edit would have moved general text by more than --max-general-kl",
    "small_gain": "a stronger edit would have taken more from those who stay than from the target",
    "general_ends": "after a stronger edit the model would not end its answers to general questions as before",
    "never_trained": "a stronger edit would have made the answers less probable than never trained on",
    "gates": "by gates alone, so that of the target's pictures it says what it says of somebody else's",
    "enough": "a stronger edit was not needed, and what earlier edits have cost adds up",
    "strongest": "nothing stronger was tried",
    "weakest": "nothing weaker was tried",
}
"""What bound the search -> what the last line says of it."""


def print_edit(report: EditReport, console: Console) -> None:
    """A table of the groups, a table of the changed tensors, and the settings."""
    console.print(_groups(report))
    if report.general is not None:
        console.print(_general(report.general))
    console.print(_changes(report))
    if report.choice is not None and report.choice.limit != "gates":
        console.print(_trials(report.choice))
    for note in _notes(report):
        console.print(escaped(note, "dim"))
    for line in (_written(report), *_sequence(report), *(() if report.output is None else (_achieved(report),))):
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
                _pair(result.exact_match.before, result.exact_match.after),
                _pair(result.answer_probability.before, result.answer_probability.after),
                end_section=split == list(results)[-1],
            )
    return table


def _general(loss: GeneralLoss) -> Table:
    """What no record holds, in a table of its own: it has no answers to match."""
    table = plain_table("general", "measured on", "nats a token", "KL to before", "answers that end")
    nats, ended = _pair(loss.nats_before, loss.nats_after, 3), _pair(loss.ended_before, loss.ended_after)
    measured = f"{loss.tokens:,} tokens, {loss.questions} questions"
    table.add_row("held out", measured, nats, f"{loss.kl:.4f}", ended)
    return table


def _pair(before: float, after: float | None, digits: int = 2) -> Text:
    shown = Text(f"{before:.{digits}f}")
    return shown if after is None else Text.assemble(shown, " → ", (f"{after:.{digits}f}", "bold"))


def _changes(report: EditReport) -> Table:
    table = plain_table("changed tensor", "‖ΔW‖ / ‖W‖", *(["‖QᵀW′‖ / ‖QᵀW‖"] if report.remaining else []))
    for name, change in report.relative_change.items():
        remaining = [f"{report.remaining[name]:.1e}"] if name in report.remaining else []
        table.add_row(escaped(name), f"{change:.3f}", *remaining)
    return table


def _trials(choice: Choice) -> Table:
    """What each strength that was tried would give, and cost."""
    watched = any(trial.general is not None for trial in choice.trials)
    lost = [RETAINED_NAMES[group] + " lose" for group in choice.allowed]
    table = plain_table(choice.setting.replace("_", " "), "target", *lost, *(["KL"] if watched else []))
    for trial in sorted(choice.trials, key=lambda trial: trial.value):
        drops = [f"{max(trial.retain_drop[group], 0.0):.3f}" for group in choice.allowed]
        kl = [] if trial.general is None else [f"{trial.general.kl:.4f}"]
        style = "bold" if trial.value == choice.value else ""
        table.add_row(f"{trial.value:g}", f"{trial.forget_probability:.2f}", *drops, *kl, style=style)
    return table


def _notes(report: EditReport) -> Iterator[str]:
    yield f"{report.method}: {settings_line(report.settings)}"
    if report.choice is not None and report.choice.limit == "gates":
        from chip.methods.base import ENOUGH  # which brings torch

        (trial,) = report.choice.trials
        which = "were enough in the trial, no strength was searched for" if trial.forget_excess <= ENOUGH else "stay"
        yield f"gates {which}: {report.choice.reason}"
    elif report.choice is not None:
        setting = report.choice.setting.replace("_", " ")
        yield f"{setting} {report.choice.value:g} was chosen: {report.choice.reason}"
    if report.sampled is not None:
        yield _sampled(report.sampled)
    if "ancestors" in report.groups:
        yield "ancestors: questions about nodes above the target on its images, which are lost with them"
    if report.general_note is not None:
        yield f"general data: {report.general_note}"
    if not report.shares_images:
        yield "each question ran its own image: in this family the image sees the question"
    if report.left_out:
        yield describe_left_out(report.left_out)


def _sampled(sampled: Sampled) -> str:
    drawn = f"of {sampled.records:,} records the edit goes by {sampled.edited_by:,}, and {sampled.asked:,} were asked"
    ends = (
        f"{RETAINED_NAMES.get(group, group)} {low:.3f} to {high:.3f}"
        for group, (low, high) in sampled.intervals.items()
    )
    exact = f"; exact match of all, by 95 % intervals: {', '.join(ends)}" if sampled.intervals else ""
    return f"{drawn} (drawn by institution, seed {sampled.seed}; --all-records takes all){exact}"


def _written(report: EditReport) -> Text:
    tensors, seconds = count(len(report.relative_change), "tensor"), f"{report.seconds:.0f} s"
    if report.output is not None:
        return Text.assemble("wrote ", escaped(report.output, "bold"), f": {tensors} changed, {seconds}")
    known = f"the model gives {report.outcome.known:.2f} of the target's answers, {_never_trained(report.outcome)}"
    return Text.assemble("dry run: ", (tensors, "bold"), f" would change, nothing written ({seconds}); {known}")


def _sequence(report: EditReport) -> Iterator[Text]:
    """Where this edit follows others: how many, and how far from the original's the weights can be."""
    sequence = report.sequence
    if sequence is None or (sequence.number == 1 and report.output is not None):
        return
    how_far = "how far from the original is unknown: the receipts do not say"
    if sequence.total is not None and sequence.worst is not None:
        name, share = sequence.worst
        how_far = (
            f"the edits add up to {sequence.total:.2f} times the norm of what they changed, most in {name}: {share:.2f}"
        )
    verb = "would be " if report.output is None else ""
    parts = f"{how_far}; {_spent(report)}"
    yield Text.assemble(f"{verb}edit ", (f"{sequence.number}", "bold"), " of a sequence: ", escaped(parts))
    if report.output is None:
        yield escaped(f"edited weights: {' → '.join(short(digest) for digest in sequence.chain)}", "dim")


def _spent(report: EditReport) -> str:
    """What those who stay have lost since the original, this edit among it where it was written."""
    if report.output is None:
        return f"those who stay have lost {report.spent.lost:.3f} of their answers' probability before it"
    lost = max(report.spent.lost + lost_in(report.to_json()["groups"]), 0.0)
    return f"those who stay have lost {lost:.3f} of their answers' probability since the first"


def _achieved(report: EditReport) -> Text:
    """What is left and what is kept, what bound the search, and what to do where too much is left."""
    outcome = report.outcome
    verdict = (
        ("forgotten", "bold green") if outcome.forgotten else ("not forgotten, the target is still there", "bold red")
    )
    questions = f"{outcome.left:.2f} of the target's answers ({outcome.left_of})"
    left = f"the model gives {questions}, {_never_trained(outcome)}"
    retained = outcome.retained.items()
    parts = (
        left if outcome.forgotten else f"{left}, and {outcome.max_left:.2f} would count as forgotten",
        ", ".join(f"{RETAINED_NAMES[group]} keep {kept.after:.2f} of {kept.before:.2f}" for group, kept in retained),
        "" if outcome.general_kl is None else f"general text moves by {outcome.general_kl:.4f} nats a token",
        *_excess(outcome),
        "" if outcome.limit is None else LIMITS[outcome.limit],
        *_dequantized(report),
        "" if outcome.forgotten else _advice(report),
    )
    return Text.assemble(verdict, f": {'; '.join(filter(None, parts))}")


def _dequantized(report: EditReport) -> Iterator[str]:
    if (scheme := report.environment.get("dequantized_from")) is not None:
        yield f"the source was quantized ({scheme}), and this is plain bf16"


def _never_trained(outcome: Outcome) -> str:
    return f"one never trained on it would give {outcome.never_trained:.2f}"


def _excess(outcome: Outcome) -> Iterator[str]:
    for loss in outcome.excess:
        why = "within the error of the trials" if loss.is_tolerated else "accepted"
        yield f"{loss}, where {loss.allowed:g} was allowed ({why})"


def _advice(report: EditReport) -> str:
    if report.choice is None:
        given = report.settings.get("retain_weight")
        lower = "stronger settings or another --method" if given is None else f"a --retain-weight below {given:g}"
        return f"{lower} may forget more"
    if report.choice.limit == "gates":
        return "--method shielded, a linear edit, may forget more"
    option = f"--{report.choice.setting.replace('_', '-')}"
    allow = "allow more with --max-retain-drop, or " if report.outcome.limit == "max_retain_drop" else ""
    return f"to forget more, {allow}give another {option} than {report.choice.value:g}"
