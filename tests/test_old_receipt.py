"""What an earlier version has written is still read: its receipt has the settings' names of that version.

`data/receipt_of_0_1_0` holds the receipt and the model card that chip 0.1.0 wrote before settings were renamed:
`shield` is `retain_weight` now, `near` `neighbor_weight`, `tolerance` `max_retain_drop`, and `sites` `target_modules`.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.receipt import RECEIPT, read_receipt
from chip.checkpoint.verify import verify
from chip.cli.main import main
from tests.test_receipt import edit_folder

WRITTEN = Path(__file__).parent / "data" / "receipt_of_0_1_0"
OLD_SETTINGS = {
    "shield": 8.0,
    "ridge": 0.1,
    "near": 0.3,
    "tolerance": 0.02,
    "sites": ["connector", "down"],
    "layers": "22-27",
}


def write_checkpoint(folder: Path, weight: tuple[int, ...]) -> Path:
    """The bytes that the old run read or wrote, made without chip."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "any"}')
    tensors = {
        "weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "bias": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
    }
    header = json.dumps(tensors).encode()
    values = struct.pack("<8f", *weight, 0.5, -0.5)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values)
    return folder


def write_edited(folder: Path) -> Path:
    """The folder that the old run wrote."""
    write_checkpoint(folder, (1, 2, 3, 4, 5, 5))
    for path in WRITTEN.iterdir():
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "ckpt", (1, 2, 3, 4, 5, 6))


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    return write_edited(tmp_path / "out")


def test_it_verifies_and_its_settings_keep_their_names(edited: Path, original: Path) -> None:
    assert verify(edited).faults == ()
    assert verify(edited, original).faults == ()
    assert read_receipt(edited).settings == OLD_SETTINGS


def test_it_is_kept_by_the_next_edit(edited: Path, tmp_path: Path) -> None:
    old = json.loads((edited / RECEIPT).read_text())
    del old["digest"]
    edit_folder(Checkpoint.open(edited), tmp_path / "second", {"weight": torch.zeros(2, 3)})
    assert read_receipt(tmp_path / "second").previous == old
    assert verify(tmp_path / "second", edited).faults == ()


def test_the_commands_show_it(
    edited: Path, original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["chip", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out

    shown = run("verify", edited, "--original", original)
    assert "request 7" in shown
    assert "173 other bytes are the original's" in shown
    assert json.loads(run("verify", edited, "--json"))["receipt"]["settings"] == OLD_SETTINGS
    run("diff", original, edited, "--html", edited.parent / "diff.html")
    page = (edited.parent / "diff.html").read_text()
    for name in OLD_SETTINGS:
        assert name in page
    assert (edited / RECEIPT).read_bytes() == (WRITTEN / RECEIPT).read_bytes()
