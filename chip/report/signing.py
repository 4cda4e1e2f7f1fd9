"""What an edited folder says of itself: its model card and its receipt."""

from __future__ import annotations

from pathlib import Path

from chip.checkpoint.folder import files_in
from chip.checkpoint.hashing import digest_all
from chip.checkpoint.layout import CONFIG, Checkpoint
from chip.checkpoint.model_card import CARD, UNTOUCHED, Figure, write_card
from chip.checkpoint.read_back import ReadBack, WrittenFile, read_back
from chip.checkpoint.receipt import RECEIPT, Edit, Receipt, write_receipt
from chip.checkpoint.written_changes import written_changes
from chip.progress import ProgressCallback
from chip.report.edit_report import EditReport

_MERGED = f"by the adapter that was merged into the base first, by the edit, or by both; {UNTOUCHED}"
_AS_ADAPTER = "by this adapter to it. It can be taken off again: it is for review, and not for a release"


def sign_output(source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> None:
    """Say in the written folder how it was made, read all of it back, and leave the receipt."""
    changes = written_changes(source, folder, report.relative_change)
    _write_card(folder, report, len(changes), UNTOUCHED if source.adapter is None else _MERGED)
    (folder / RECEIPT).unlink(missing_ok=True)  # of an edit before, which goes into the new one
    files = read_back(source, folder, changes.keys(), own={CARD, RECEIPT}, progress=progress)
    what = Edit(report.method, report.settings, None, changes, report.remaining, report.label)
    write_receipt(folder, Receipt.of(source, what, files))


def sign_adapter(source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> None:
    """`sign_output` of a folder that holds an adapter to the weights of the source's."""
    (folder / CARD).write_text("# An edit of a checkpoint, as an adapter to it\n", encoding="utf-8")
    _write_card(folder, report, len(report.relative_change), _AS_ADAPTER)
    written = {str(relative): path for path, relative in files_in(folder)}
    base = {name: source.folder / name for name in (CONFIG, *source.shards)}
    with progress("hashing", len(written) + len(base)) as advance:
        digests = digest_all([(path, ()) for path in (*written.values(), *base.values())], advance)
    files = {name: WrittenFile(each.bytes, each.whole, None) for name, each in zip(written, digests, strict=False)}
    of_base = dict(zip(base, (each.whole for each in digests[len(written) :]), strict=True))
    what = Edit(report.method, report.settings, None, {}, {}, report.label)
    write_receipt(folder, Receipt.of(source, what, ReadBack(files, {}, 0), of_base))


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
