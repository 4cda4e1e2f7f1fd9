"""What may be removed to make room for an output: a folder of which chip wrote every file, as it is there now."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from chip.checkpoint.hashing import digest_all
from chip.checkpoint.receipt import RECEIPT, Receipt, has_receipt, read_receipt
from chip.checkpoint.signing import SIGNATURE, is_signature
from chip.errors import InputError, printable
from chip.progress import ProgressCallback, silent


def check_replaceable(folder: Path, *, hashes: bool = True, progress: ProgressCallback = silent) -> None:
    """Check that nothing is lost when the output of another edit takes the folder's place. One that is not there, or
    holds nothing, can be.

    Args:
        hashes: read every file, too; else names and sizes are compared.

    Raises:
        InputError: the folder has no receipt, or one that is damaged; it holds what the receipt does not list; or a
            file in it is not as chip wrote it.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not has_receipt(folder):
        raise _kept(folder, f"is no folder that chip has written, there is no {RECEIPT} in it")
    receipt = read_receipt(folder)
    written = []
    for name, path in _entries(folder):
        if name == RECEIPT or (name == SIGNATURE and is_signature(path)):
            continue
        if name not in receipt.files or not stat.S_ISREG(path.lstat().st_mode):
            raise _kept(folder, f"holds {printable(name)}, which chip did not write", "move it away")
        if path.stat().st_size != receipt.files[name].bytes:
            raise _changed(folder, name)
        written.append((name, path))
    if hashes:
        _check_hashes(folder, receipt, written, progress)


def _check_hashes(folder: Path, receipt: Receipt, written: list[tuple[str, Path]], progress: ProgressCallback) -> None:
    with progress(f"hashing {folder.name}", len(written)) as advance:
        digests = digest_all([(path, ()) for _, path in written], advance)
    for (name, _), digest in zip(written, digests, strict=True):
        if digest.whole != receipt.files[name].sha256:
            raise _changed(folder, name)


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """All below the folder that is no folder itself, in hidden folders too, links not followed."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        for name in sorted((*files, *(name for name in folders if (here / name).is_symlink()))):
            yield str((here / name).relative_to(folder)), here / name


def _changed(folder: Path, name: str) -> InputError:
    return _kept(folder, f"holds {printable(name)}, which is not as chip wrote it", "move it away")


def _kept(folder: Path, what: str, hint: str | None = None) -> InputError:
    message = f"{what}, and it will not be overwritten; {f'{hint}, or ' if hint else ''}choose another folder"
    return InputError(message, argument="out", value=folder)
