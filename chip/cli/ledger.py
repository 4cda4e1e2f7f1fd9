"""`chip ledger`: requests over time, and what became of them."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chip.cli.arguments import Json, print_json
from chip.errors import InputError
from chip.ledger.entry import Destroyed

if TYPE_CHECKING:
    from chip.ledger import Ledger
    from chip.ledger.entry import Entry

OVERDUE = 1
"""Exit code of `due` where a deadline is over, and of `verify` and `show` where something is wrong."""

app = typer.Typer(
    help="Requests over time: what was asked, done and measured, what is due. The file names nobody.",
    no_args_is_help=True,
)
add = typer.Typer(
    help="Add what happened. An edit and an evaluation add their own entries: --ledger there.", no_args_is_help=True
)
app.add_typer(add, name="add")

LedgerPath = Annotated[Path, typer.Argument(help="Its file, outside of every model's folder.", metavar="LEDGER")]
Key = Annotated[Path | None, typer.Option(help="File with the ledger's key; by default CHIP_LEDGER_KEY holds it.")]
By = Annotated[str | None, typer.Option(help="Who adds it; by default this machine's user.", metavar="WHO")]
On = Annotated[str | None, typer.Option(help="The day it happened; by default today.", metavar="YYYY-MM-DD")]
Requests = Annotated[
    list[str], typer.Option("--request", help="Beginning of its pseudonym, as `show` has it; repeat.", metavar="ID")
]
OneRequest = Annotated[str, typer.Option(help="Beginning of its pseudonym, as `show` has it.", metavar="ID")]


@add.command()
def received(
    ledger: LedgerPath,
    forget: Annotated[str, typer.Option(help="The node: its id or path. The ledger gets a pseudonym.", metavar="NODE")],
    records: Annotated[Path, typer.Option(help="Records that it occurs in.")],
    label: Annotated[str | None, typer.Option(help="What the request is called; it must not name the node.")] = None,
    basis: Annotated[str | None, typer.Option(help="What it rests on, such as: GDPR Art. 17.")] = None,
    deadline: Annotated[str | None, typer.Option(help="By when all is to be done.", metavar="YYYY-MM-DD")] = None,
    on: On = None,
    by: By = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Somebody has asked for a node to be forgotten. Begins the ledger where there is none."""
    from chip.recording.by_hand import receive

    opened = _open(ledger, key, by)
    day, end = _date("on", on), _date("deadline", deadline)
    _show(receive(opened, forget, records, label=label, basis=basis, deadline=end, on=day), as_json)


@add.command()
def edited(
    ledger: LedgerPath,
    folder: Annotated[Path, typer.Argument(help="What the edit has written, with its receipt.", metavar="EDITED")],
    request: Requests,
    by: By = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """An edit was written without the ledger: takes what its receipt says."""
    from chip.recording.by_hand import record_edit

    _show(record_edit(_open(ledger, key, by), request, folder), as_json)


@add.command()
def released(
    ledger: LedgerPath,
    folder: Annotated[Path, typer.Argument(help="The edited model.", metavar="EDITED")],
    on: On = None,
    by: By = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """An edited model is in use, or given out: for all requests that were edited into it."""
    from chip.cli.progress import progress_bar
    from chip.recording.by_hand import release

    _show(release(_open(ledger, key, by), folder, on=_date("on", on), progress=progress_bar), as_json)


@add.command()
def destroyed(
    ledger: LedgerPath,
    what: Annotated[Destroyed, typer.Argument(help="With every copy of it.", metavar="original|records")],
    request: Requests,
    note: Annotated[str | None, typer.Option(help="How, and by whom; it must not name the node.")] = None,
    on: On = None,
    by: By = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """The model before the edit, or the records of released requests, are destroyed."""
    from chip.recording.by_hand import destroy

    _show(destroy(_open(ledger, key, by), what, request, note=note, on=_date("on", on)), as_json)


@add.command()
def refused(
    ledger: LedgerPath,
    request: Requests,
    reason: Annotated[str, typer.Option(help="Why; it must not name the node.")],
    on: On = None,
    by: By = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """A request is answered with no, or was taken back."""
    from chip.recording.by_hand import refuse

    _show(refuse(_open(ledger, key, by), request, reason, on=_date("on", on)), as_json)


@app.command()
def show(
    ledger: LedgerPath,
    request: Annotated[
        str | None, typer.Option(help="The entries of one: the beginning of its pseudonym.", metavar="ID")
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show all requests and where they stand. Exit 1 where the ledger has a fault."""
    from chip.cli import console
    from chip.report.text.ledger import print_history, print_requests

    contents = _open(ledger, key).read()
    selected = None if request is None else contents.find(request)
    if as_json:
        print_json(contents.to_json(selected))
    elif selected is not None:
        print_history(contents, selected, console.out)
    else:
        print_requests(contents, console.out)
    raise typer.Exit(OVERDUE if contents.faults else 0)


@app.command()
def due(ledger: LedgerPath, key: Key = None, as_json: Json = False) -> None:
    """Show what is open, and by when it must be done. Exit 1 where a deadline is over, or the ledger has a fault."""
    from chip.cli import console
    from chip.report.text.ledger import print_due

    contents, today = _open(ledger, key).read(), date.today()  # the day where the operator is
    opened = contents.history.opened()
    if as_json:
        print_json({"today": today.isoformat(), "open": [one.to_json(today) for one in opened]})
    else:
        print_due(contents, today, console.out)
    over = any((one.days_left(today) or 0) < 0 for one in opened)
    raise typer.Exit(OVERDUE if over or contents.faults else 0)


@app.command()
def verify(
    ledger: LedgerPath,
    head: Annotated[str | None, typer.Option(help="A head that was noted earlier.", metavar="DIGEST")] = None,
    edited: Annotated[
        list[Path] | None, typer.Option(help="A folder that `chip edit --ledger` wrote; repeat.", metavar="FOLDER")
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Check every line and the chain, and with the key who wrote it. Exit 1 where something is wrong."""
    from chip.cli import console
    from chip.recording.verification import verify_ledger
    from chip.report.text.ledger import print_ledger_verification

    verification = verify_ledger(_open(ledger, key), head=head, edited=edited or ())
    print_json(verification.to_json()) if as_json else print_ledger_verification(verification, console.out)
    raise typer.Exit(OVERDUE if verification.faults else 0)


@app.command()
def page(
    ledger: LedgerPath,
    html: Annotated[Path, typer.Argument(help="The page to write.", metavar="PAGE.html")],
    request: OneRequest,
    edited: Annotated[
        Path | None, typer.Option(help="The folder that the edit wrote: shows its receipt.", metavar="FOLDER")
    ] = None,
    key: Key = None,
) -> None:
    """Write a page about one request, to be printed and filed: what was asked, done and measured."""
    from chip.recording.dossier import dossier_of
    from chip.report.html.page import check_page, write_page
    from chip.report.html.request import request_page

    check_page(html, *([] if edited is None else [edited]))
    write_page(html, request_page(dossier_of(_open(ledger, key), request, edited)))


def _open(file: Path, key: Path | None, by: str | None = None) -> Ledger:
    from chip.ledger import Ledger, LedgerKey

    return Ledger(file, LedgerKey.read(key), by=by)


def _date(option: str, text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise InputError("is no day; write it as 2026-12-31", argument=option, value=text) from error


def _show(entry: Entry, as_json: bool) -> None:
    from chip.cli import console
    from chip.report.text.ledger import print_entry

    print_json(entry.to_json()) if as_json else print_entry(entry, console.out)
