"""What an edited folder says of itself: its model card and its receipt."""

from __future__ import annotations

from pathlib import Path

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.model_card import CARD, Figure, write_card
from chip.checkpoint.read_back import read_back
from chip.checkpoint.receipt import RECEIPT, Edit, Receipt, write_receipt
from chip.progress import ProgressCallback
from chip.report.edit_report import EditReport


def sign_output(source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> None:
    """Say in the written folder how it was made, read all of it back, and leave the receipt."""
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
    what = Edit(report.method, report.settings, None, report.relative_change, report.remaining, report.label)
    write_receipt(folder, Receipt.of(source, what, files))
