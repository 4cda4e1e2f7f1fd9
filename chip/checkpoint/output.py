"""Whether a folder can become the copy of a checkpoint: checked before anything long is computed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from chip.checkpoint.contents import folder_contents
from chip.checkpoint.folder import can_share_blocks, check_not_half_replaced
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.overwrite import check_replaceable
from chip.checkpoint.receipt import stored_receipt
from chip.errors import InputError, one_line
from chip.progress import ProgressCallback, silent


def check_output(
    source: Checkpoint,
    out: Path,
    *,
    overwrite: bool = False,
    link_unchanged: bool = False,
    copies: bool = True,
    progress: ProgressCallback = silent,
) -> None:
    """Check that the copy of `source` can be written to `out`; or, where nothing is copied, what is written without.

    Raises:
        InputError: `out` is, or holds, or is held by the source; it is a file; it is not empty (with `overwrite`:
            `check_replaceable` says why not); a run was killed while it replaced it; it cannot be made; there is no
            space for it; hard links cannot reach it. Or a shard of the source lies where nothing is copied from, or its
            receipt, which the next one keeps, is damaged.
    """
    origin = source.folder.resolve()
    try:
        target = out.resolve()
        for folder in {origin, source.given.resolve(), source.place.resolve()}:
            _check_place(folder, target, out)
        _check_content(target, out, overwrite, progress)
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name that is none, a folder not to read
        raise InputError(f"cannot be used ({one_line(error)}); choose another", argument="out", value=out) from error
    stored_receipt(source.folder)
    parent = next(parent for parent in target.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        message = f"cannot be made, {parent} is not a folder one can write to; choose another"
        raise InputError(message, argument="out", value=out)
    if not copies:
        return
    files = folder_contents(source).copied
    shards = {Path(shard) for shard in source.shards}
    _check_shards(origin, files, shards)
    check_space([path for path, relative in files if not (link_unchanged and relative in shards)], parent)
    if link_unchanged and any((origin / shard).stat().st_dev != parent.stat().st_dev for shard in source.shards):
        message = f"{out} is on another disk than {source.folder}, where hard links cannot reach; leave this out"
        raise InputError(message, argument="link_unchanged", value=True)


def _check_place(origin: Path, target: Path, out: Path) -> None:
    """`origin` and `target`, both without links, are the source and where `out` leads."""
    problem = None
    if _is_within(origin, target) or _is_within(target, origin):
        problem = f"overlaps the source {origin}; choose a folder beside it"
    elif target.exists() and not target.is_dir():
        problem = "is a file; choose a folder that is empty or does not exist"
    if problem is not None:
        raise InputError(problem, argument="out", value=out)


def _check_content(target: Path, out: Path, overwrite: bool, progress: ProgressCallback) -> None:
    check_not_half_replaced(target)
    if overwrite:
        check_replaceable(target, progress=progress)
    elif target.exists() and any(target.iterdir()):
        raise InputError("is not empty; choose another folder, or overwrite it", argument="out", value=out)


def _is_within(inner: Path, outer: Path) -> bool:
    """Whether `inner` is `outer` or below it, whatever the two are called: a mount or the case can give two names."""
    if inner.is_relative_to(outer):
        return True
    return outer.exists() and any(path.exists() and path.samefile(outer) for path in (inner, *inner.parents))


def _check_shards(origin: Path, files: Sequence[tuple[Path, Path]], shards: set[Path]) -> None:
    """That all shards are among the files that are copied."""
    if hidden := shards - {relative for _, relative in files}:
        raise InputError(f"{origin}: {min(hidden)} is in a folder that is not copied; move the shard out of it")


def check_space(files: Sequence[Path], folder: Path) -> None:
    """Refuse before the first byte what would fail with the last one: a copy of `files` into `folder`.

    Raises:
        InputError: they take more bytes than are free.
    """
    needed, free = sum(path.stat().st_size for path in files), shutil.disk_usage(folder).free
    if needed > free and not can_share_blocks(files[0], folder):  # sharing takes no space
        raise InputError(f"{folder}: {needed:,} bytes are needed, {free:,} free; free some, or choose another disk")
