"""What can be wrong in a benchmark: what it counts, the form of what it stores, and what it is compared with."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks.large import work
from benchmarks.models import Shape, Vision
from benchmarks.rows import Row
from chip.checkpoint.layout import Checkpoint
from tests.test_receipt import edit_folder

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.name)
def test_results_are_rows(file: Path) -> None:
    rows = json.loads(file.read_text())
    assert rows
    for row in rows:
        assert row.keys() >= {field.name for field in fields(Row)}
        assert row["ours"] >= 0
        assert row["ratio"] is None or row["ratio"] == pytest.approx(row["baseline"] / row["ours"])
        assert row["share_of_ceiling"] is None or 0 < row["share_of_ceiling"] < 1
        assert row["versions"].keys() >= {"torch", "transformers", "safetensors"}


def test_work_of_an_edit_by_hand() -> None:
    shape = Shape(2, 8, 6, 4, 2, vocabulary=100, vision=Vision(5, 4, 10, 2))
    found = work(shape, layers=2, image_tokens=2, before=1, questions=[[3, 2], [4]])
    # A layer: q and o of 8 × 8, k and v of 8 × 4, gate, up and down of 8 × 6. Questions share three tokens.
    weights = 2 * 64 + 2 * 32 + 3 * 48
    first = 2 * weights * (3 + 5) + 4 * 8 * (4.5 + (9 + 4.5) + (6 + 2))
    second = 2 * weights * (3 + 4) + 4 * 8 * (4.5 + (12 + 8))
    # The tower: 8 patches of 1176 values, and 5 layers in which all patches see each other. Then the connector.
    tower = 2 * 8 * (1176 * 4 + 5 * (4 * 16 + 3 * 40)) + 4 * 4 * 5 * 64
    connector = 2 * 2 * (16 * 16 + 16 * 8)
    assert found.passing == 2 * (first + second) + 2 * (tower + connector)
    assert found.grams == 2 * 4 * 16**2 + 2 * (8 + 7) * 6**2
    assert found.solving == pytest.approx(2 * 16**3 / 3 + 4 * (16 + 8) * 16**2 + 2 * (6**3 / 3 + 4 * 8 * 6**2))


def test_commands_on_files_start_without_transformers(source: Checkpoint, tmp_path: Path) -> None:
    edited = tmp_path / "edited"
    edit_folder(source, edited)
    code = (
        "import sys\n"
        "from chip.cli.main import main\n"
        "_, original, edited = sys.argv\n"
        "for command, end in (('verify', edited), 0), (('diff', original, edited), 1):\n"
        "    sys.argv[1:] = command\n"
        "    try: main()\n"
        "    except SystemExit as found: assert found.code == end\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, source.folder, edited], cwd=ROOT, check=True, capture_output=True)
