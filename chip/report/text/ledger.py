"""What `chip ledger` shows: requests and where they stand, what is due, and whether all is as it was written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from chip.ledger.chain import Chain
from chip.ledger.entry import Entry
from chip.ledger.ledger import Contents
from chip.ledger.requests import Request, short
from chip.report.formatting import count
from chip.report.text.elements import escaped, plain_table

if TYPE_CHECKING:
    from chip.recording.verification import LedgerVerification

_NONE = "–"


def print_entry(entry: Entry, console: Console) -> None:
    """One that was added, and the head: noted elsewhere, it vouches for all entries up to here."""
    requests = ", ".join(map(short, entry.requests))
    console.print(escaped(f"entry {entry.number}: {entry.event}, request {requests}"))
    console.print(escaped(f"head {entry.digest}", "dim"))


def print_requests(contents: Contents, console: Console) -> None:
    """All requests, where each stands, and the head."""
    table = plain_table("request", "label", "state", "basis", "received", "deadline", "next", left=7)
    for request in contents.history.requests.values():
        table.add_row(
            short(request.pseudonym),
            escaped(request.label or _NONE),
            request.state,
            escaped(request.basis or _NONE),
            request.received.isoformat(),
            request.deadline.isoformat() if request.deadline else _NONE,
            request.next_step or _NONE,
        )
    console.print(table)
    _print_end(contents.chain, contents.faults, console)


def print_history(contents: Contents, request: Request, console: Console) -> None:
    """The entries of one request."""
    table = plain_table("entry", "day", "event", "by", "what", left=5)
    for entry in contents.chain.entries:
        if request.pseudonym in entry.requests:
            table.add_row(str(entry.number), entry.day, entry.event, escaped(entry.by), escaped(_what(entry)))
    console.print(escaped(f"request {request.pseudonym}: {request.state}", "bold"))
    console.print(table)
    _print_end(contents.chain, contents.faults, console)


def print_due(contents: Contents, today: date, console: Console) -> None:
    """What is open, the nearest deadline first."""
    opened = contents.history.opened()
    table = plain_table("request", "label", "next", "deadline", "days left", left=4)
    for request in opened:
        days = request.days_left(today)
        table.add_row(
            short(request.pseudonym),
            escaped(request.label or _NONE),
            request.next_step or _NONE,
            request.deadline.isoformat() if request.deadline else "none given",
            _NONE if days is None else Text(f"{-days} over", "bold red") if days < 0 else str(days),
        )
    console.print(table if opened else "nothing is open")
    _print_end(contents.chain, contents.faults, console)


def print_ledger_verification(verification: LedgerVerification, console: Console) -> None:
    """Each fault, or what was found to be as written; what was not checked; and the head."""
    _print_faults(verification.faults, verification.notes, console)
    if verification.faults:
        faults = count(len(verification.faults), "fault")
        console.print(Text.assemble((faults, "bold"), ": this is not the ledger as it was written"))
        return
    entries = f"{verification.entries:,} {'entry' if verification.entries == 1 else 'entries'}"
    console.print(Text.assemble(("✓", "green"), f" {entries}, each follows the one before"))
    if verification.with_key:
        console.print(Text.assemble(("✓", "green"), " written by whoever holds the key"))
    else:
        console.print(Text("– who wrote it was not checked: give the key with --key", "dim"))
    if verification.anchored:
        console.print(Text.assemble(("✓", "green"), " it holds what was known from elsewhere"))
    else:
        hint = "– whether the whole end was replaced was not checked: give an earlier head with --head"
        console.print(Text(hint, "dim"))
    console.print(escaped(f"head {verification.head}"))


def _print_end(chain: Chain, faults: Sequence[str], console: Console) -> None:
    _print_faults(faults, chain.notes, console)
    number = len(chain.entries)
    console.print(escaped(f"{number:,} {'entry' if number == 1 else 'entries'}, head {chain.head}", "dim"))


def _print_faults(faults: Sequence[str], notes: Sequence[str], console: Console) -> None:
    for fault in faults:
        console.print(Text.assemble(("✗", "bold red"), " ", escaped(fault)))
    for note in notes:
        console.print(Text.assemble(("!", "yellow"), " ", escaped(note)))


def _what(entry: Entry) -> str:
    """The short values of an entry's details."""
    values = {name: value for name, value in vars(entry.details).items() if isinstance(value, str)}
    return ", ".join(f"{name} {short(value) if _is_digest(value) else value}" for name, value in values.items())


def _is_digest(value: str) -> bool:
    return len(value) == 64 and not set(value) - set("0123456789abcdef")
