"""What an edited folder says of itself: its model card and its receipt."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from chip.checkpoint.folder import files_in
from chip.checkpoint.hashing import digest_all
from chip.checkpoint.layout import CONFIG, Checkpoint
from chip.checkpoint.model_card import CARD, UNTOUCHED, Figure, write_card
from chip.checkpoint.read_back import ReadBack, WrittenFile, read_back
from chip.checkpoint.receipt import RECEIPT, Edit, Receipt, write_receipt
from chip.checkpoint.sequence import MAX_DRIFT
from chip.checkpoint.statement import finite
from chip.checkpoint.written_changes import written_changes
from chip.errors import ChipWarning
from chip.progress import ProgressCallback
from chip.report.edit_report import EditReport

_MERGED = f"by the adapter that was merged into the base first, by the edit, or by both; {UNTOUCHED}"
_AS_ADAPTER = "by this adapter to it. It can be taken off again: it is for review, and not for a release"


def document_merged(source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> EditReport:
    """Say in the written folder how it was made, read all of it back, and leave the receipt; the report, with what the
    receipt has counted."""
    changes = written_changes(source, folder, report.relative_change)
    _write_card(folder, report, len(changes), UNTOUCHED if source.adapter is None else _MERGED)
    (folder / RECEIPT).unlink(missing_ok=True)  # of an edit before, which goes into the new one
    files = read_back(source, folder, changes.keys(), own={CARD, RECEIPT}, progress=progress)
    return _leave(Receipt.of(source, _edit(report, changes, report.remaining), files), folder, report)


def document_adapter(source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> EditReport:
    """`document_merged` of a folder that holds an adapter to the weights of the source's."""
    (folder / CARD).write_text("# An edit of a checkpoint, as an adapter to it\n", encoding="utf-8")
    _write_card(folder, report, len(report.relative_change), _AS_ADAPTER)
    written = {str(relative): path for path, relative in files_in(folder)}
    base = {name: source.folder / name for name in (CONFIG, *source.shards)}
    with progress("hashing", len(written) + len(base)) as advance:
        digests = digest_all([(path, ()) for path in (*written.values(), *base.values())], advance)
    files = {name: WrittenFile(each.bytes, each.whole, None) for name, each in zip(written, digests, strict=False)}
    of_base = dict(zip(base, (each.whole for each in digests[len(written) :]), strict=True))
    return _leave(Receipt.of(source, _edit(report, {}, {}), ReadBack(files, {}, 0), of_base), folder, report)


def _write_card(folder: Path, report: EditReport, changed_tensors: int, scope: str) -> None:
    write_card(
        folder,
        method=report.method,
        settings=report.settings,
        label=report.label,
        changed_tensors=changed_tensors,
        figures=[
            Figure(group, split, result.exact_match.before, result.exact_match.after)
            for group, results in report.groups.items()
            for split, result in results.items()
            if result.exact_match.after is not None
        ],
        scope=scope,
    )


def _leave(receipt: Receipt, folder: Path, report: EditReport) -> EditReport:
    warn_of_sequence(receipt)
    write_receipt(folder, receipt)
    return replace(report, sequence=receipt.sequence)


def _edit(report: EditReport, changes: Mapping[str, float], remaining: Mapping[str, float]) -> Edit:
    shown = report.to_json()
    sampled = () if report.sampled is None else ("sampled",)
    figures = finite({name: shown[name] for name in ("groups", "general", "outcome", *sampled)})
    return Edit(
        report.method,
        report.settings,
        None,
        changes,
        remaining,
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
