"""Calls of transformers that print nothing, and whose errors are one line for the user."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers

from chip.errors import foreign_code


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
    """Whatever transformers raises at the files of a checkpoint becomes an `InputError`; see `foreign_code`."""
    with foreign_code(path, trouble, hint), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is said once
        yield
