"""How an edit is written: into the weights of a copy, or as an adapter beside them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from chip.checkpoint.adapter import Adapter
from chip.checkpoint.contents import folder_contents
from chip.checkpoint.folder import atomic_directory, copy_file, flush
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.overwrite import check_replaceable
from chip.checkpoint.writer import check_written, copy_patched
from chip.distributed import DistributedContext
from chip.edit_options import EditOptions
from chip.errors import ChipWarning, InputError
from chip.methods.patch import Patch, check_removed
from chip.model.adapter_export import export_adapter
from chip.model.adapters import check_installed, merge_adapter
from chip.progress import ProgressCallback
from chip.report.documents import document_adapter, document_merged
from chip.report.edit_report import EditReport


class Saving(Protocol):
    """One way to write an edit."""

    merged: bool
    """Whether the output is a copy of the checkpoint, new values rounded as it stores them; else they stay in fp32."""

    def write(
        self, source: Checkpoint, folder: Path, patch: Patch, link_unchanged: bool, progress: ProgressCallback
    ) -> dict[str, float]:
        """Make the folder; ‖QᵀW′‖ / ‖QᵀW‖ as written, by tensor, where directions were taken out."""

    def reopen(self, source: Checkpoint, folder: Path) -> Checkpoint:
        """The edited model, as whoever gets the folder has it."""

    def document(self, source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> EditReport:
        """Say in the folder how it was made, and leave the receipt; the report, with what that has counted."""


class SaveMerged:
    """A copy of the checkpoint with new values in some tensors."""

    merged = True

    def write(
        self, source: Checkpoint, folder: Path, patch: Patch, link_unchanged: bool, progress: ProgressCallback
    ) -> dict[str, float]:
        copy_patched(source, folder, patch.tensors, link_unchanged=link_unchanged, progress=progress)
        check_written(source, folder, patch.tensors)
        return check_removed(source, folder, patch.removed)

    def reopen(self, source: Checkpoint, folder: Path) -> Checkpoint:
        return Checkpoint.open(folder)

    def document(self, source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> EditReport:
        return document_merged(source, folder, report, progress)


class SaveAdapter:
    """A LoRA adapter to the checkpoint in its folder; where one was merged into that, the new one takes its place."""

    merged = False

    def write(
        self, source: Checkpoint, folder: Path, patch: Patch, link_unchanged: bool, progress: ProgressCallback
    ) -> dict[str, float]:
        export_adapter(source, folder, patch.tensors, progress)
        own = set() if source.adapter is None else {Path(name) for name in source.adapter.processor_files}
        for path, relative in folder_contents(source).copied:
            if relative in own:
                copy_file(path, folder / relative)
        flush(folder)
        source.check_unchanged()
        return {}

    def reopen(self, source: Checkpoint, folder: Path) -> Checkpoint:
        return merge_adapter(replace(source, adapter=None, merged={}), Adapter.open(folder))

    def document(self, source: Checkpoint, folder: Path, report: EditReport, progress: ProgressCallback) -> EditReport:
        return document_adapter(source, folder, report, progress)


def resolve_saving(options: EditOptions) -> Saving:
    """The way to write that is called `save` in them; what an adapter is not good for is said.

    Raises:
        InputError: there is no such way, or what it needs is missing.
    """
    save = options.get("save", "merged")
    if save == "merged":
        return SaveMerged()
    if save != "adapter":
        raise InputError("not known, there is merged and adapter", argument="save", value=save)
    if options.get("link_unchanged"):
        raise InputError("an adapter's folder holds no shards; leave one out", argument="link_unchanged", value=True)
    check_installed()
    note = (
        "an adapter can be taken off again, so this is not for a release: whoever has the model has what was forgotten"
    )
    warnings.warn(note, ChipWarning, stacklevel=3)
    return SaveAdapter()


@contextmanager
def output_folder(output: Path, overwrite: bool, distributed: DistributedContext) -> Iterator[Path]:
    """The folder to write into, the same in all processes; in place, or gone, when the context ends."""
    with ExitStack() as stack:
        folder = stack.enter_context(atomic_directory(output, overwrite)) if distributed.is_main_process else output
        yield Path(distributed.broadcast_object(str(folder)))
        if overwrite and distributed.is_main_process:  # again: hours later, somebody may have put something there
            check_replaceable(output, hashes=False)
    distributed.barrier()  # so that all fail if putting it in place does
