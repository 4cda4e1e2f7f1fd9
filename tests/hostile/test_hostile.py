"""Every hostile input ends in right values, or in one line and exit code 2: no traceback, no hang, no memory eaten."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.families import build, write_records
from tests.hostile import configs, file_types, images, options, processors, receipts, records, texts, weights
from tests.hostile.case import EDIT, Case
from tests.hostile.runner import BYTES, SECONDS, End, run
from tests.hostile.truth import check_values

pytestmark = pytest.mark.slow

KINDS = (records, texts, images, configs, processors, weights, options, receipts, file_types)
CASES = [pytest.param(case, id=f"{kind.__name__.rpartition('.')[2]}-{case}") for kind in KINDS for case in kind.CASES]
CHATTER = re.compile(r"chip: .+|[^:]+ \.\.\.")
"""A line that may stand on stderr before the last: a warning of chip's, or progress."""


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that nobody writes into, by the family of the checkpoint in them."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("llava", "qwen2_5_vl")}
    for name, folder in folders.items():
        write_records(folder)
        build(folder / "ckpt", name, max_shard_size="10MB")
        assert run(folder, [*EDIT, "--out", "edited"]).code == 0
    return folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "place"


@pytest.mark.parametrize("case", CASES)
def test_it_ends_well(case: Case, families: dict[str, Path], folder: Path) -> None:
    shutil.copytree(families[case.family], folder, symlinks=True)
    case.harm(folder)
    before = set(folder.rglob("*"))
    if case.run[0] != "edit":
        judge(case, folder, run(folder, case.run, case.environment))
        return
    dry = run(folder, [*case.run, "--dry-run"], case.environment)
    judge(case, folder, dry)
    if dry.code == 2:
        real = run(folder, case.run, case.environment)
        assert (real.code, real.line) == (2, dry.line)
    assert set(folder.rglob("*")) == before


def judge(case: Case, folder: Path, end: End) -> None:
    """What every ending has to hold to."""
    assert end.seconds < SECONDS
    assert end.peak < BYTES, f"{end.peak:,} bytes"
    assert "Traceback" not in end.err
    assert not end.below or "panicked at" in end.below, end.below  # Rust speaks before Python knows of it
    said = end.err.splitlines()[: -1 if end.code == 2 else None]
    assert all(CHATTER.fullmatch(line) for line in said), end.err
    assert all(line.isprintable() for line in (*end.err.splitlines(), *end.out.splitlines())), (end.out, end.err)
    if end.code == 2:
        assert not case.must_pass, end.line
        assert end.out == ""
        assert end.line.startswith("chip: ")
        assert re.search(case.says, end.line), end.line
    else:
        assert end.code in ((0, 1) if case.run[0] in ("diff", "verify") else (0,)), end.err
        assert case.must_pass or case.may_pass, f"it was taken: {end.err}"
        check_values(folder, case.run, end)
