"""All that a ledger and a receipt know of one request."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from chip.checkpoint.receipt import RECEIPT, read_receipt
from chip.errors import InputError
from chip.evaluation.rows import Evaluation
from chip.ledger import Ledger
from chip.ledger.entry import Edited, Entry, Evaluated
from chip.recording.figures import evaluation_of, measured_of
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
    entries = [entry for entry in contents.chain.entries if entry.number in request.entries]
    edits = [
        (entry.details, len(entry.requests) - 1)
        for entry in entries
        if isinstance(entry.details, Edited) and entry.details.result == request.result
    ]
    edit, others = edits[-1] if edits else (None, 0)
    measured, outcome = measured_of(None if edit is None else edit.figures)
    evaluated, evaluation = _evaluation(entries, request.result)
    if edited is not None:
        _check_receipt(edited, edit)
    return Dossier(
        request,
        tuple(entries),
        edit,
        others,
        measured,
        outcome,
        evaluation,
        evaluated,
        None if edited is None else receipt_in(edited),
        len(contents.chain.entries),
        contents.chain.head,
        ledger.key is not None,
        date.today(),
    )


def _evaluation(entries: Sequence[Entry], result: str | None) -> tuple[Entry | None, Evaluation | None]:
    """The last evaluation of the model with these weights, and its entry."""
    evaluated, evaluation = None, None
    for entry in entries:
        if isinstance(entry.details, Evaluated):
            read = evaluation_of(entry.details.figures)
            if entry.details.result == result:
                evaluated, evaluation = entry, read
    return evaluated, evaluation


def _check_receipt(folder: Path, edit: Edited | None) -> None:
    read_receipt(folder)
    digest = hashlib.sha256((folder / RECEIPT).read_bytes()).hexdigest()
    if edit is None or edit.receipt != digest:
        raise InputError("its receipt is not the one of this request's last edit", argument="edited", value=folder)
