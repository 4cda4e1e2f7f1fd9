"""What a run is given, checked before anything is computed or written."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chip.checkpoint.folder import files_in
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.output import check_output
from chip.data.hierarchy import Hierarchy
from chip.data.keep import read_keep, without_target
from chip.data.overlap import count_overlap
from chip.data.readers import find_records, read_records
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError
from chip.progress import ProgressCallback, silent

PROSE = {".md", ".txt", ".log", ".csv", ".tsv", ".jsonl"}
"""Files of a checkpoint's folder in which people write about people."""


def resolve_output(
    source: Checkpoint,
    out: Path | str | None,
    overwrite: bool,
    link_unchanged: bool,
    progress: ProgressCallback = silent,
) -> Path:
    """Where to write; refused where that is no place for a copy of the checkpoint."""
    output = _default_output(source.folder) if out is None else Path(out)
    check_output(source, output, overwrite=overwrite, link_unchanged=link_unchanged, progress=progress)
    return output


def _default_output(folder: Path) -> Path:
    if folder.absolute().parent.name == "snapshots":
        hint = f"{folder} is in the hub's cache, which chip does not write to; say where the output goes"
        raise InputError(hint, argument="out")
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-edited")


def resolve_request(
    source: Checkpoint,
    forget: Sequence[str],
    records: Path | str | None,
    keep: Sequence[Path | str],
    label: str | None,
) -> ForgetRequest:
    """Who is to be forgotten, among whom; refused where the output would tell of it."""
    file = find_records(source.folder, None if records is None else Path(records))
    hierarchy = Hierarchy(read_records(file))
    request = ForgetRequest.of(hierarchy, forget)
    images = {record.image for record in hierarchy.records if isinstance(record.image, Path)}
    for path in (file, *map(Path, keep), *sorted(images)):
        if Path(os.path.realpath(path)).is_relative_to(source.folder.resolve()):
            raise InputError(f"{path}: lies in the checkpoint, and would be copied with it; move it elsewhere")
    for target in request.partition.targets:
        _check_not_named(source, target.id, label)
    _check_trained(request)
    if overlap := count_overlap(request):
        message = f"{overlap:,} of the target's records are also retained ones: the same question, image and answer; "
        warnings.warn(f"{message}it cannot be forgotten there and kept here", ChipWarning, stacklevel=3)
    return replace(request, general=tuple(without_target(read_keep([Path(file) for file in keep]), request)))


def _check_not_named(source: Checkpoint, target: str, label: str | None) -> None:
    """Raise `InputError` where the label, or prose that would be copied, names the target."""
    named = re.compile(rf"(?<!\w){re.escape(target)}(?!\w)")
    if label is not None and named.search(label):
        raise InputError(f"names {target}, which is to be forgotten; choose another", argument="label", value=label)
    for path, relative in files_in(source.folder):
        prose = path.suffix in PROSE and not target.isdigit()  # a number stands for many things
        if prose and named.search(path.read_text(encoding="utf-8", errors="replace")):
            raise InputError(f"{path}: names {target}, and {relative} would be copied; take that out of it")


def _check_trained(request: ForgetRequest) -> None:
    """An edit learns from the trained wordings only: the held-out ones are there to judge it."""
    partition, records = request.partition, request.hierarchy.records
    for part, indices in (("target", partition.forget), ("retained", partition.retained)):
        if all(records[i].held_out for i in indices):
            raise InputError(f"no {part} record has split 'train'; the edit has nothing to go by, add some")
