"""Writers of a ledger that are killed lose nothing that they were told is added, and leave no half of a line unseen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("kills", "torn"), [(6, 0), pytest.param(200, 1, marks=pytest.mark.slow)], ids=["a few", "all"]
)
def test_killed_writers_lose_nothing(tmp_path: Path, kills: int, torn: int) -> None:
    """Four at a time, each killed at a random moment."""
    command = [sys.executable, "-m", "tests.ledger_killing", str(tmp_path), "--kills", str(kills)]
    told = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert (told["kills"], told["lost"], told["faults"]) == (kills, 0, [])
    assert told["entries"] >= told["told"] > 0
    assert told["notes"] == told["torn"] >= torn
