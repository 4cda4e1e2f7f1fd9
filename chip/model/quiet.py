"""Calls of transformers that print nothing, and whose errors are one line for the user."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers

from chip.errors import InputError, printable

_LONGEST_REASON = 200


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice of transformers and accelerate on loading; errors are raised all the same."""
    accelerate = logging.getLogger("accelerate")
    levels = transformers.logging.get_verbosity(), accelerate.level
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    accelerate.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # accelerate's own map names parts that are no modules
            warnings.filterwarnings("ignore", "The following device_map keys", UserWarning)
            yield
    finally:
        transformers.logging.set_verbosity(levels[0])
        accelerate.setLevel(levels[1])
        if bars:
            transformers.logging.enable_progress_bar()


@contextmanager
def refusing(path: Path, trouble: str, hint: str) -> Iterator[None]:
    """Whatever transformers raises at the files of a checkpoint becomes an `InputError`.

    Only calls of transformers may stand in the block. It takes the files' values for what they ought to be, so that a
    wrong one ends in an exception of any kind somewhere in its code, or torch's: a list of kinds would never be whole.
    """
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is said once
            yield
    except Exception as error:
        raise InputError(f"{path}: {trouble} ({reason(error)}); {hint}") from error


def reason(error: Exception) -> str:
    """The first sentence of what an error says, on one line; with the error's kind, where that is all but a word."""
    words = printable(" ".join(str(error).split())).partition(". ")[0]
    if len(words) > _LONGEST_REASON:
        words = f"{words[:_LONGEST_REASON]} ..."
    return words if " " in words else f"{type(error).__name__}: {words}".removesuffix(": ")
