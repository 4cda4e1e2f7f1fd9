"""Files of a folder that a stranger has filled: none lies outside, and no name of theirs reaches the terminal raw."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path, PurePath

from chip.errors import InputError, printable

_LONGEST_PATH = 4096  # characters; no system takes more
_LONGEST_SHOWN = 200  # characters of a name in a message
_SHARED_BLOB = re.compile("[0-9a-f]{64}")


def resolve_inside(folder: Path, relative: str) -> Path:
    """`folder / relative`, after checking that it is a regular file and belongs to the folder.

    The name may come from an index, and the file may be a link; either could lead to any file of the machine. Links
    may leave one kind of folder, a snapshot of the hub's cache: from `REPO/snapshots/REVISION/` into `REPO/blobs/`, and
    from there into `blobs/` of the cache, which its repositories share. `folder` itself may be a link.

    Raises:
        InputError: the name leads out of the folder or is not plain (`./a`, `a//b`); the file is missing, is a folder,
            pipe or device, or is a link to a file that is not the folder's.
    """
    _check_name(folder, relative)
    path = folder / relative
    try:
        if _passes_link(folder, relative):
            target = Path(os.path.realpath(path, strict=True))
            if not _belongs(target, Path(os.path.realpath(folder, strict=True))):
                raise input_error(
                    folder, f"{quoted(relative)} links to a file outside the folder", "copy the file into it"
                )
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise input_error(folder, f"{quoted(relative)} is missing", "fetch the checkpoint again") from error
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise input_error(folder, f"{quoted(relative)} is no name of a file", "fetch the checkpoint again") from error
    except OSError as error:
        raise input_error(folder, f"{quoted(relative)} cannot be reached ({error.strerror})", "fix that") from error
    if not stat.S_ISREG(mode):
        raise input_error(folder, f"{quoted(relative)} is not a regular file", "fetch the checkpoint again")
    return path


def check_all_files(folder: Path) -> None:
    """Refuse what a library would wait for, or never come to the end of, when it opens the files it expects here.

    Raises:
        InputError: a pipe, a device or a socket lies in the folder, or a link leads to one.
    """
    for path in sorted(folder.iterdir()):
        with suppress(OSError):  # a link that leads nowhere counts as missing
            mode = path.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise input_error(folder, f"{quoted(path.name)} is a pipe or a device, and no file", "remove it")


@contextmanager
def open_inside(folder: Path, relative: str) -> Iterator[BufferedReader]:
    """The file for which `resolve_inside` gives the path, for reading.

    Raises:
        InputError: as `resolve_inside` does, and where the file cannot be opened or read.
    """
    path = resolve_inside(folder, relative)
    try:
        # Should a pipe have taken the file's place meanwhile, opening it must not wait for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise input_error(folder, f"{quoted(relative)} is not a regular file", "fetch the checkpoint again")
            yield file
    except OSError as error:
        raise input_error(
            path, f"cannot be read ({error.strerror})", "fix that, or fetch the checkpoint again"
        ) from error


def _check_name(folder: Path, relative: str) -> None:
    """Refuse a name by how it is written."""
    if len(relative) > _LONGEST_PATH:  # before anything goes through its parts
        raise input_error(folder, f"{quoted(relative)} is no name of a file", "fetch the checkpoint again")
    plain = PurePath(relative)
    if plain.is_absolute() or ".." in plain.parts:
        raise input_error(folder, f"{quoted(relative)} leads outside the folder", "do not trust this checkpoint")
    if str(plain) != relative:  # else one file could go by two names
        raise input_error(folder, f"{quoted(relative)} is no plain path", "write it without '.' and with single '/'")


def _passes_link(folder: Path, relative: str) -> bool:
    """Whether a step below `folder` is a link."""
    step = folder
    for part in PurePath(relative).parts:
        step = step / part
        if step.is_symlink():
            return True
    return False


def _belongs(target: Path, folder: Path) -> bool:
    """Whether a file is the folder's own. Both without links."""
    if target.is_relative_to(folder):
        return True
    snapshot = next((path for path in (folder, *folder.parents) if path.parent.name == "snapshots"), None)
    if snapshot is None:
        return False
    repository = snapshot.parent.parent
    if target.parent == repository / "blobs":
        return True
    shared = repository.parent / "blobs" / target.name[:2]
    return target.parent == shared and _SHARED_BLOB.fullmatch(target.name) is not None


def hub_name(folder: Path) -> str | None:
    """The repository of which a folder is a snapshot in the Hub's cache; None elsewhere, where a name is the user's."""
    repository = folder.absolute().parents[1].name if len(folder.absolute().parents) > 1 else ""
    if folder.absolute().parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/")


def hub_revision(folder: Path) -> str | None:
    """The repository and its commit, `organization/name@0123...`, where `hub_name` knows it."""
    name = hub_name(folder)
    return None if name is None else f"{name}@{folder.absolute().name}"


def shown_name(folder: Path) -> str:
    """What to call a model by: the folder's name; of a snapshot, which is called like its commit, the repository's."""
    return hub_name(folder) or folder.resolve().name


def input_error(place: Path, what: str, hint: str) -> InputError:
    """The error of one line that says where, what is wrong, and what to do."""
    return InputError(f"{printable(str(place))}: {what}; {hint}")


def damaged_file(path: Path, what: str) -> InputError:
    """The error of a file whose content cannot be what its writer meant."""
    return input_error(path, what, "the file is damaged, fetch or save it again")


def quoted(name: str) -> str:
    """A name from a file, in quotes, on one line, of a length one can read, and without what a terminal would obey."""
    return repr(name if len(name) <= _LONGEST_SHOWN else name[:_LONGEST_SHOWN] + "…")


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first of some names from a file, each `quoted`."""
    return ", ".join([*map(quoted, names[:most]), *(["..."] if len(names) > most else [])])


def counted(names: Sequence[str], what: str) -> str:
    """How many there are: `1 tensor`, `1,234 tensors`."""
    return f"{len(names):,} {what}" if len(names) == 1 else f"{len(names):,} {what}s"
