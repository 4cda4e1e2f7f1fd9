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

_WORDINGS = {"trained": "as trained", "paraphrased": "worded otherwise"}


@dataclass(frozen=True)
class Dossier:
    """All that is known of one request."""

    request: Request
    entries: tuple[Entry, ...]
    """Its own, in their order."""
    edit: Entry | None
    """The last one."""
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


@dataclass(frozen=True)
class Measured:
    """What `chip edit` has measured of one group of records, before and after."""

    group: str
    wording: str
    count: int
    before: float
    after: float | None
    chance: float


def request_page(dossier: Dossier) -> str:
    """A whole HTML page, which names nobody, asks for nothing from elsewhere and runs no script."""
    evaluation = dossier.evaluation
    edit = None if dossier.edit is None else dossier.edit.details
    assert edit is None or isinstance(edit, Edited)
    return render(
        "request",
        dossier=dossier,
        request=dossier.request,
        edit=edit,
        others=0 if dossier.edit is None else len(dossier.edit.requests) - 1,
        settings=[] if edit is None else list(flat_pairs(edit.settings)),
        measured=[] if edit is None else _measured(edit),
        receipt=_receipt(dossier.receipt),
        reference=_reference(evaluation),
        **({"evaluation": None} if evaluation is None else figures_shown(evaluation)),
    )


def _reference(evaluation: Evaluation | None) -> str | None:
    return None if evaluation is None or evaluation.reference is None else "a model retrained without the target"


def _receipt(receipt: Mapping[str, Any] | None) -> ShownReceipt | None:
    return None if receipt is None else shown_receipt(receipt, set())


def _measured(edit: Edited) -> list[Measured]:
    """Exact match by group and wording; empty where the ledger has none, as of an edit that was added by hand."""
    groups = (edit.figures or {}).get("groups", {})
    return [
        Measured(
            group,
            _WORDINGS.get(split, split),
            result["count"],
            result["exact_match"]["before"],
            result["exact_match"]["after"],
            result["chance"],
        )
        for group, splits in groups.items()
        for split, result in splits.items()
    ]
