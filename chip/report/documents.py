"""What an edited folder says of itself: its model card and its receipt."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.model_card import CARD, Figure, write_card
from chip.checkpoint.read_back import read_back
from chip.checkpoint.receipt import RECEIPT, Edit, Receipt, write_receipt
from chip.checkpoint.sequence import MAX_DRIFT
from chip.checkpoint.statement import finite
from chip.errors import ChipWarning
from chip.progress import ProgressCallback
from chip.report.edit_report import EditReport


def write_documents(source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> EditReport:
    """Say in the written folder how it was made, read all of it back, and leave the receipt; the report, with what the
    receipt has counted."""
    write_card(
        folder,
        method=report.method,
        settings=report.settings,
        label=report.label,
        changed_tensors=len(report.relative_change),
        figures=[
            Figure(group, split, result.exact_match.before, result.exact_match.after)
            for group, results in report.groups.items()
            for split, result in results.items()
            if result.exact_match.after is not None
        ],
    )
    (folder / RECEIPT).unlink(missing_ok=True)  # of an edit before, which goes into the new one
    files = read_back(source, folder, report.relative_change.keys(), own={CARD, RECEIPT}, progress=progress)
    receipt = Receipt.of(source, _edit(report), files)
    warn_of_sequence(receipt)
    write_receipt(folder, receipt)
    return replace(report, sequence=receipt.sequence)


def _edit(report: EditReport) -> Edit:
    shown = report.to_json()
    figures = finite({name: shown[name] for name in ("groups", "general", "outcome")})
    return Edit(
        report.method,
        report.settings,
        None,
        report.relative_change,
        report.remaining,
        report.label,
        version=report.version,
        arguments=report.arguments,
        environment=report.environment,
        figures=figures,
    )


def warn_of_sequence(receipt: Receipt) -> None:
    """Of what makes the sequence another than its user may think."""
    if receipt.previous is not None and receipt.earlier is None:
        message = "the source has a receipt of other weights than its own, so that edits are counted from here"
        warnings.warn(message, ChipWarning, stacklevel=3)
    total = None if receipt.sequence is None else receipt.sequence.total
    if total is not None and total > MAX_DRIFT:
        message = (
            f"the edits of this sequence add up to {total:.1f} times the norm of the changed weights, more than "
            f"{MAX_DRIFT:g}; look at what is kept, and edit the original with all requests, or train anew"
        )
        warnings.warn(message, ChipWarning, stacklevel=3)
