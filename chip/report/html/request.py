"""The page of `chip ledger page`: one request, for the file: what was asked, done and measured, and what that shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from chip.evaluation.rows import Evaluation
from chip.ledger.entry import Edited, Entry
from chip.ledger.requests import Request
from chip.report.html.eval import figures_shown
from chip.report.html.page import render
from chip.report.html.receipt import ShownReceipt, flat_pairs, shown_receipt


@dataclass(frozen=True)
class Measured:
    """What `chip edit` has measured of one group of records, before and after: exact match."""

    group: str
    wording: str
    count: int
    before: float
    after: float
    chance: float


@dataclass(frozen=True)
class Reached:
    """What is left of the target's answers, against what was to count as forgotten."""

    left: float
    never_trained: float
    """What a model that was never trained on it would answer, as estimated."""
    most: float


@dataclass(frozen=True)
class Dossier:
    """All that is known of one request."""

    request: Request
    entries: tuple[Entry, ...]
    """Its own, in their order."""
    edit: Edited | None
    """The last one."""
    edited_with: int
    """Other requests in that edit."""
    measured: tuple[Measured, ...]
    """By that edit; empty where the ledger has no figures, as of one that was added by hand."""
    outcome: Reached | None
    evaluation: Evaluation | None
    """The last one of the model that this edit wrote."""
    evaluated: Entry | None
    """Its entry."""
    receipt: Mapping[str, Any] | None
    """Of the folder that the edit wrote; None where that was not given."""
    entries_in_ledger: int
    head: str
    with_key: bool
    """Whether it was checked that who holds the key wrote all entries."""
    made: date


def request_page(dossier: Dossier) -> str:
    """A whole HTML page, which names nobody, asks for nothing from elsewhere and runs no script."""
    evaluation, edit = dossier.evaluation, dossier.edit
    return render(
        "request",
        dossier=dossier,
        request=dossier.request,
        edit=edit,
        others=dossier.edited_with,
        settings=[] if edit is None else list(flat_pairs(edit.settings)),
        measured=dossier.measured,
        receipt=_receipt(dossier.receipt),
        reference=_reference(evaluation),
        **({"evaluation": None} if evaluation is None else figures_shown(evaluation)),
    )


def _reference(evaluation: Evaluation | None) -> str | None:
    return None if evaluation is None or evaluation.reference is None else "a model retrained without the target"


def _receipt(receipt: Mapping[str, Any] | None) -> ShownReceipt | None:
    return None if receipt is None else shown_receipt(receipt, set())
