"""Whether a file of results can be written, before anything long is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chip.errors import InputError, one_line


def check_place(file: Path, what: str, is_own: Callable[[Path], bool], *checkpoints: Path) -> None:
    """Check that a result can be written to `file`.

    Args:
        what: what chip writes there, in a word: `page`.
        is_own: whether a file that is there is one of those, so that it may be replaced.

    Raises:
        InputError: there is no folder, a file is there that is not chip's, or the place is in one of the checkpoints
            that the result is about.
    """
    try:
        if not file.absolute().parent.is_dir():
            raise InputError(f"{file}: there is no folder {file.parent}; make it, or choose another")
        if file.is_dir():
            raise InputError(f"{file}: is a folder; give the name of a file")
        if any(file.resolve().is_relative_to(folder.resolve()) for folder in checkpoints):
            raise InputError(f"{file}: lies in a checkpoint, which stays as it is; choose a place beside it")
        if file.exists() and not (file.is_file() and is_own(file)):
            raise InputError(f"{file}: is there already, and no {what} that chip has written; choose another")
    except (OSError, RuntimeError) as error:  # a name too long, a folder one may not look into, a circle of links
        raise not_written(file, error) from error


def not_written(file: Path, error: OSError | RuntimeError) -> InputError:
    return InputError(f"{file}: cannot be written ({one_line(error)}); choose another")
