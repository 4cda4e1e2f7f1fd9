"""What an edited folder says of itself: its model card and its receipt."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from chip.checkpoint.edit import Edit
from chip.checkpoint.folder import files_in
from chip.checkpoint.hashing import digest_all
from chip.checkpoint.layout import CONFIG, Checkpoint
from chip.checkpoint.model_card import CARD, UNTOUCHED, Figure, Metadata, license_of, write_card
from chip.checkpoint.paths import hub_name
from chip.checkpoint.read_back import ReadBack, WrittenFile, read_back
from chip.checkpoint.receipt import (
    RECEIPT,
    Receipt,
    has_receipt,
    read_receipt,
    sequence_behind,
    write_receipt,
)
from chip.checkpoint.sequence import MAX_DRIFT, EditSequence
from chip.checkpoint.statement import finite
from chip.checkpoint.weights import weights_digest
from chip.checkpoint.written_changes import written_changes
from chip.errors import ChipWarning
from chip.progress import ProgressCallback
from chip.report.edit_report import EditReport

_MERGED = "by the adapter that was merged into the base first, by the edit, or by both; "
_DEQUANTIZED = "all weights were dequantized to bf16 first ({}), and every other byte is what that gave"
_AS_ADAPTER = "by this adapter to it. It can be taken off again: it is for review, and not for a release"


def document_merged(source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> EditReport:
    """Say in the written folder how it was made, read all of it back, and leave the receipt; the report, with what the
    receipt has counted."""
    changes = written_changes(source, folder, report.relative_change)
    metadata = Metadata("finetune", "transformers", hub_name(source.given))
    _write_card(folder, report, len(changes), metadata, _scope(source))
    (folder / RECEIPT).unlink(missing_ok=True)  # of an edit before, which goes into the new one
    files = read_back(source, folder, changes.keys(), own={CARD, RECEIPT}, progress=progress)
    return _leave(Receipt.of(source, _edit(report, changes, report.remaining), files), folder, report)


def document_adapter(source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> EditReport:
    """`document_merged` of a folder that holds an adapter to the weights of the source's."""
    (folder / CARD).write_text("# An edit of a checkpoint, as an adapter to it\n", encoding="utf-8")
    metadata = Metadata("adapter", "peft", hub_name(source.folder), license_of(source.folder))
    _write_card(folder, report, len(report.relative_change), metadata, _AS_ADAPTER)
    written = {str(relative): path for path, relative in files_in(folder)}
    base = {name: source.folder / name for name in (CONFIG, *source.shards)}
    with progress("hashing", len(written) + len(base)) as advance:
        digests = digest_all([(path, ()) for path in (*written.values(), *base.values())], advance)
    files = {name: WrittenFile(each.bytes, each.whole, None) for name, each in zip(written, digests, strict=False)}
    of_base = dict(zip(base, (each.whole for each in digests[len(written) :]), strict=True))
    return _leave(Receipt.of(source, _edit(report, {}, {}), ReadBack(files, {}, 0), of_base), folder, report)


def count_edits(source: Checkpoint, report: EditReport, merged: bool, progress: ProgressCallback) -> EditReport:
    """The report of a dry run, with the place in its sequence that the edit would have: all weights are hashed.

    Where it would be written as an adapter, or one was merged into the source, nothing says how far it goes.
    """
    from chip.checkpoint.measure import frobenius_norm  # brings torch

    previous = read_receipt(source.folder) if has_receipt(source.folder) else None
    digest = weights_digest(source, progress)
    earlier = previous if previous is not None and previous.result_digest == digest else None
    changes = report.relative_change if merged and source.adapter is None else None
    norms = {} if changes is None else {name: frobenius_norm(source.stored(name)) for name in changes}
    sequence = sequence_behind(earlier, digest, changes, norms)
    warn_of_sequence(sequence, other_weights=previous is not earlier)
    return replace(report, sequence=sequence)


def _scope(source: Checkpoint) -> str:
    """What the changes are, and what all else is, for the card."""
    untouched = UNTOUCHED if source.quantized is None else _DEQUANTIZED.format(source.quantized.scheme)
    return untouched if source.adapter is None else _MERGED + untouched


def _write_card(folder: Path, report: EditReport, changed_tensors: int, metadata: Metadata, scope: str) -> None:
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
        metadata=metadata,
        scope=scope,
    )


def _leave(receipt: Receipt, folder: Path, report: EditReport) -> EditReport:
    warn_of_sequence(receipt.sequence, other_weights=receipt.previous is not None and receipt.earlier is None)
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
        general_digest=report.general_digest,
        measured_on=report.measured_on,
    )


def warn_of_sequence(sequence: EditSequence | None, other_weights: bool) -> None:
    """Of what makes the sequence another than its user may think.

    Args:
        other_weights: whether the source's receipt is of other weights than it has.
    """
    if other_weights:
        message = "the source has a receipt of other weights than its own, so that edits are counted from here"
        warnings.warn(message, ChipWarning, stacklevel=3)
    total = None if sequence is None else sequence.total
    if total is not None and total > MAX_DRIFT:
        message = (
            f"the edits of this sequence add up to {total:.1f} times the norm of the changed weights, more than "
            f"{MAX_DRIFT:g}; look at what is kept, and edit the original with all requests, or train anew"
        )
        warnings.warn(message, ChipWarning, stacklevel=3)
