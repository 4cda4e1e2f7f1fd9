"""Runs the command in this process, under a limit of time and of memory, and says how it ended."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from unittest.mock import patch

import psutil
import transformers

from chip.cli.main import main

SECONDS = 30
"""What takes longer hangs."""
BYTES = 2 << 30
"""More memory than any input may make a process take."""
LIBRARIES = 500 << 20
"""Of these, what torch and transformers take."""


class Hang(BaseException):
    """Not an `Exception`, and so past every handler of the code that hangs."""


@dataclass(frozen=True)
class End:
    """How a command ended."""

    code: int
    out: str
    err: str
    below: str
    """What libraries wrote to the terminal past Python."""
    seconds: float
    peak: int
    """Bytes that a process which ran this alone would have taken at most."""

    @property
    def line(self) -> str:
        """The line that refuses; empty where nothing is refused."""
        return self.err.splitlines()[-1] if self.code == 2 and self.err else ""


def run(folder: Path, arguments: Sequence[str], environment: dict[str, str] | None = None) -> End:
    """`chip ARGUMENTS` in a folder."""
    out, err = io.StringIO(), io.StringIO()
    start = time.perf_counter()
    with (
        contextlib.chdir(folder),
        patch.object(sys, "argv", ["chip", *arguments]),
        patch.dict(os.environ, environment or {}),
        warnings.catch_warnings(),
        _peak_memory() as peak,
        _no_hang(),
        _below_python() as below,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        _warn_as_python_does()
        transformers.logging.set_verbosity_error()  # as the command has it, where nobody has imported it before
        code = _exit_code()
    return End(code, out.getvalue(), err.getvalue(), below(), time.perf_counter() - start, peak())


def _exit_code() -> int:
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _warn_as_python_does() -> None:
    """Tests raise warnings; a user sees them."""
    warnings.simplefilter("default")
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)


@contextmanager
def _no_hang() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise Hang

    kept = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def _peak_memory() -> Iterator[Callable[[], int]]:
    """What the block takes at most, beside what libraries take; outside Linux, what it takes at its end."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    start = psutil.Process().memory_info().rss

    def peak() -> int:
        highest = int(psutil.Process().memory_info().rss)
        with contextlib.suppress(OSError):
            if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
                highest = 1024 * int(found[1])
        return LIBRARIES + highest - start

    yield peak


@contextmanager
def _below_python() -> Iterator[Callable[[], str]]:
    """What libraries write to the terminal past Python, such as a panic in Rust."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def text() -> str:
            return written

        try:
            yield text
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            written = file.read().decode(errors="replace")
