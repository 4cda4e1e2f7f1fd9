"""How every hostile input has to end."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.hostile.case import Case
from tests.hostile.runner import BYTES, SECONDS, End, run
from tests.hostile.truth import check_values

CHATTER = re.compile(r"chip: .+|[^:]+ \.\.\.")
"""A line that may stand on stderr before the last: a warning of chip's, or progress."""
DIFFERS = ("diff", "verify")
"""Commands that end with 1 where they find a difference."""


def check_case(case: Case, source: Path, folder: Path) -> None:
    """Spoil a copy of `source` at `folder`, run the command there, and look at how it ends.

    A dry run of `edit` is to end as the real one: where it refuses, so must the other, with the same line.
    """
    shutil.copytree(source, folder, symlinks=True)
    case.harm(folder)
    before = set(folder.rglob("*"))
    if case.run[0] == "edit":
        end = run(folder, [*case.run, "--dry-run"], case.environment)
        if end.code == 2:
            real = run(folder, case.run, case.environment)
            assert (real.code, real.line) == (2, end.line)
    else:
        end = run(folder, case.run, case.environment)
    _check_manners(end)
    if end.code == 2:
        _check_refusal(case, end)
    else:
        assert end.code in ((0, 1) if case.run[0] in DIFFERS else (0,)), end.err
        assert case.may_pass, f"it was taken: {end.err}"
        check_values(folder, case.run, end)
    assert set(folder.rglob("*")) == before


def _check_manners(end: End) -> None:
    """No traceback, no hang, no memory eaten, nothing that a terminal would obey."""
    assert "Traceback" not in end.err
    assert end.seconds < SECONDS
    assert end.peak < BYTES, f"{end.peak:,} bytes"
    assert not end.below or "panicked at" in end.below, end.below  # Rust speaks before Python knows of it
    said = end.err.splitlines()[: -1 if end.code == 2 else None]
    assert all(CHATTER.fullmatch(line) for line in said), end.err
    assert all(line.isprintable() for line in (*end.err.splitlines(), *end.out.splitlines())), (end.out, end.err)


def _check_refusal(case: Case, end: End) -> None:
    assert not case.must_pass, end.line
    assert end.out == ""
    assert end.line.startswith("chip: ")
    assert re.search(case.says, end.line), end.line
