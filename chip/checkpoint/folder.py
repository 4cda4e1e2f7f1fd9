"""Folders as files: what is in one, how a file is copied, and a new folder that appears whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from chip.checkpoint.paths import input_error, resolve_inside
from chip.errors import InputError, RunError, one_line

_NOT_COPIED = frozenset({".git", ".hg", ".svn", ".cache"})  # folders with a history of their own
_FICLONE = 0x40049409  # ioctl of linux/fs.h: share the blocks until one side writes
_BLOCK = 1 << 20


@contextmanager
def atomic_directory(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """A path to make a folder at, which becomes `output` when the block ends.

    The folder lies in `.OUTPUT.chip/` beside `output`, under a lock. It is flushed and then renamed, so `output` is
    there whole or not at all. When the block raises, all is removed; what a killed run could not remove, the next one
    to the same output does. With `overwrite` the old folder at `output` is removed once the new one has its place.

    Raises:
        InputError: another run is writing to the same output.
        RunError: the file system refuses: no space, no permission, no locks.
    """
    output = output.resolve()
    workplace = _workplace(output)
    new, old = workplace / "new", workplace / "old"
    try:
        with _new_parents(output), _locked(workplace, output):
            _recover(new, old, output)
            try:
                yield new
                flush(new)
                _put_in_place(new, old, output, overwrite)
            finally:
                _recover(new, old, output)
    except OSError as error:
        what = f"{error.strerror} ({error.filename})" if error.filename else error.strerror or error
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "fix that"
        raise RunError(f"{output}: {what}; {hint}, or choose another folder") from error


def _workplace(output: Path) -> Path:
    """Where the folder `output` is made, and the one that it replaces lies for a moment."""
    return output.with_name(f".{output.name}.chip")


def check_not_half_replaced(output: Path) -> None:
    """Say what to do where a run was killed when it had moved the old folder away, and the new one not yet in place.

    Raises:
        InputError: so it is, and no other run is at it.
    """
    output = Path(os.path.realpath(output))  # where a link leads, the folder was replaced
    workplace = _workplace(output)
    new, old = workplace / "new", workplace / "old"
    if os.path.lexists(output) or not old.is_dir() or _is_locked(workplace / "lock"):
        return
    both = f"{old} is what was here, and {new}, whole, what it had written; rename one of them"
    state = both if new.is_dir() else f"{old} is what was here; rename it"
    what = "a run that was to replace this folder was killed before its end"
    raise input_error(output, what, f"{state} to {output.name}, remove {workplace}, and try again")


@contextmanager
def _new_parents(output: Path) -> Iterator[None]:
    """Makes the folders above `output`, and takes those away again that stay empty."""
    made = [parent for parent in output.parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()


@contextmanager
def _locked(workplace: Path, output: Path) -> Iterator[None]:
    """Holds `workplace` for this process; the lock goes with the process, however that ends."""
    lock, descriptor = workplace / "lock", None
    try:
        with _signals_deferred():  # else one could leave a lock that nobody knows of
            descriptor = _lock(lock, output)
        yield
    finally:
        if descriptor is not None:
            _unlock(lock, descriptor)


def _unlock(lock: Path, descriptor: int) -> None:
    lock.unlink(missing_ok=True)  # before it is released, so that a run that waits for it sees it is gone
    try:
        lock.parent.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # the next run has put its own lock there
            raise
    os.close(descriptor)


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Ctrl+C and a request to terminate wait until the block ends, and act then."""
    if threading.current_thread() is not threading.main_thread():  # no signal is handled there
        yield
        return
    arrived: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: arrived.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not None  # set from outside of Python, and not to be put back
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)


def _lock(lock: Path, output: Path) -> int:
    """Descriptor of the file `lock`, locked. Tries again where another process removed it in between."""
    while True:
        lock.parent.mkdir(exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.path.samestat(lock.stat(), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(f"{output}: another run is writing it; wait, or choose another folder") from None
        os.close(descriptor)


def _is_locked(lock: Path) -> bool:
    """Whether a run that is alive holds the lock."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _recover(new: Path, old: Path, output: Path) -> None:
    """Remove what an earlier run has left behind, and put back what it had moved aside to make room."""
    if old.exists() and not output.exists():
        old.replace(output)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _put_in_place(new: Path, old: Path, output: Path, overwrite: bool) -> None:
    if overwrite and output.exists():
        output.replace(old)
    new.replace(output)
    flush_one(output.parent)


def files_in(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each regular file under `folder` with its path relative to it, sorted; links count as what they lead to.

    Raises:
        InputError: a link leads nowhere, round in a circle, or out of the folder (the hub cache's blobs excepted); a
            name is not UTF-8.
    """
    seen: set[Path] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        here = Path(root)
        folders[:] = sorted(set(folders) - _NOT_COPIED)
        if not here.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{here}: links to a folder outside; copy what is needed of it into the checkpoint")
        if here.resolve() in seen:
            raise InputError(f"{here}: links lead to this folder twice; remove one of them")
        seen.add(here.resolve())
        for path in (here / name for name in sorted(files)):
            if not path.exists():
                raise InputError(f"{path}: a link that leads nowhere; fetch the checkpoint again, or remove it")
            if path.is_file():
                relative = path.relative_to(folder)
                if not _is_text(str(relative)):
                    raise InputError(f"{path}: its name is not UTF-8, and no receipt can hold it; rename it")
                yield resolve_inside(folder, str(relative)), relative


def _is_text(name: str) -> bool:
    """Whether it holds characters, and no bytes that are none."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def copy_file(source: Path, target: Path) -> None:
    """A new file with the bytes of `source` and the mode that the umask gives; links are followed.

    By reference where the file system can, else within the kernel, else block by block.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as old, target.open("xb") as new:
        if not (_share_blocks(old, new) or _copy_in_kernel(old, new)):
            shutil.copyfileobj(old, new, _BLOCK)


def link_file(source: Path, target: Path) -> None:
    """A second name for the file that `source` leads to. A write to one changes both."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.hardlink_to(source.resolve())


def _share_blocks(old: BinaryIO, new: BinaryIO) -> bool:
    """Whether the file system could make `new` a copy of `old` by reference."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
    except OSError:  # the usual case: only some file systems can
        return False
    return True


def can_share_blocks(source: Path, folder: Path) -> bool:
    """Whether a copy of `source` in `folder` takes no space of its own.

    Raises:
        InputError: no file can be made there.
    """
    try:
        with source.open("rb") as old, tempfile.TemporaryFile(dir=folder) as new:
            return _share_blocks(old, new)
    except OSError as error:  # a file system that takes no files, such as /proc
        raise InputError(f"{folder}: cannot be written to ({one_line(error)}); choose another folder") from error


def _copy_in_kernel(old: BinaryIO, new: BinaryIO) -> bool:
    """Whether the kernel made the copy, no byte passing through this process. If not, `new` is empty."""
    if sys.platform != "linux":
        return False
    size, done = os.fstat(old.fileno()).st_size, 0
    try:
        while done < size:
            copied = os.copy_file_range(old.fileno(), new.fileno(), size - done, done, done)
            if not copied:
                break
            done += copied
    except OSError:  # across file systems, or where a file system cannot: the plain copy says what is wrong
        pass
    if done < size:
        new.truncate(0)
    return done == size


def flush(folder: Path) -> None:
    """Have the disk hold every file and folder, so that a rename cannot overtake the bytes."""
    for root, _, files in os.walk(folder):
        for path in (*(Path(root, name) for name in files), Path(root)):
            flush_one(path)


def flush_one(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_page_cache(paths: Iterable[Path]) -> None:
    """Have the kernel read these flushed files from the disk the next time, on systems that can (posix_fadvise)."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
