"""The consoles that the commands print to."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from rich.console import Console

from chip.checkpoint.hub import keep_libraries_offline

out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
"""Where results go; piped, wide enough that no line is broken."""
err = Console(stderr=True, highlight=False)
"""Where progress goes."""


def quiet_libraries() -> None:
    """Keep advice that is meant for developers of transformers off the user's terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a process that is gone is a page of C++ frames
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which peft loads, and which misses kernels of its own
    keep_libraries_offline()
    warnings.filterwarnings("ignore", module="transformers")
    warnings.filterwarnings("ignore", module="pydicom")
    warnings.filterwarnings("ignore", module="PIL")  # a picture is as it should be, or its record is refused
