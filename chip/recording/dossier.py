"""All that a ledger and a receipt know of one request."""

from __future__ import annotations

import hashlib
from datetime import date
from pathlib import Path

from chip.checkpoint.receipt import RECEIPT, read_receipt
from chip.errors import InputError
from chip.ledger import Ledger
from chip.ledger.entry import Edited, Entry, Evaluated
from chip.recording.figures import evaluation_of
from chip.report.html.receipt import receipt_in
from chip.report.html.request import Dossier


def dossier_of(ledger: Ledger, prefix: str, edited: Path | None = None) -> Dossier:
    """What is known of the request whose pseudonym begins with `prefix`.

    Args:
        edited: the folder that its last edit wrote.

    Raises:
        InputError: there is no such ledger or request; the ledger has a fault; the folder's receipt is damaged, or not
            the one of that edit.
    """
    ledger.read()
    contents = ledger.read_sound()
    request = contents.find(prefix)
    entries = [entry for entry in contents.chain.entries if request.pseudonym in entry.requests]
    first = max(place for place, entry in enumerate(entries) if entry.number == request.entries[0])
    entries = entries[first:]  # of a request that came again, the later one
    edit = _last(entries, Edited, request.result)
    evaluated = _last(entries, Evaluated, request.result)
    if edited is not None:
        _check_receipt(edited, edit)
    return Dossier(
        request,
        tuple(entries),
        edit,
        evaluation_of(evaluated.details.figures) if evaluated and isinstance(evaluated.details, Evaluated) else None,
        evaluated,
        None if edited is None else receipt_in(edited),
        len(contents.chain.entries),
        contents.chain.head,
        ledger.key is not None,
        date.today(),
    )


def _last(entries: list[Entry], kind: type[Edited | Evaluated], result: str | None) -> Entry | None:
    """The last entry of this kind about the model with these weights."""
    found = (entry for entry in reversed(entries) if isinstance(entry.details, kind))
    return next((entry for entry in found if getattr(entry.details, "result", None) == result), None)


def _check_receipt(folder: Path, edit: Entry | None) -> None:
    read_receipt(folder)
    digest = hashlib.sha256((folder / RECEIPT).read_bytes()).hexdigest()
    if edit is None or not isinstance(edit.details, Edited) or edit.details.receipt != digest:
        raise InputError("its receipt is not the one of this request's last edit", argument="edited", value=folder)
