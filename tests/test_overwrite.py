"""What may be replaced is what chip has written, as it is; whatever else lies in the way stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.output import check_output
from chip.checkpoint.overwrite import check_replaceable
from chip.checkpoint.receipt import RECEIPT
from chip.errors import InputError
from tests.folders import SHARDS, contents, write_signed


@pytest.fixture
def output(source: Checkpoint, tmp_path: Path) -> Path:
    """Written from `source`; another edit may replace it."""
    write_signed(source, tmp_path / "out", {"b": torch.zeros(7)})
    check_output(source, tmp_path / "out", overwrite=True)
    return tmp_path / "out"


def _file(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("somebody's work")

    return write


def _link(folder: Path) -> None:
    (folder.parent / "images").mkdir()
    (folder / "images").symlink_to(folder.parent / "images")


def _replaced_by_link(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "config.json")
    (folder / "config.json").symlink_to(folder.parent / "config.json")


def _trained_on(folder: Path) -> None:
    """As many bytes as before."""
    shard = folder / SHARDS[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")


def _forged(folder: Path) -> None:
    text = (folder / RECEIPT).read_text()
    (folder / RECEIPT).write_text(text.replace('"config.json"', '"records.jsonl"'))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "records": (_file("records.jsonl"), "holds records.jsonl, which chip did not write"),
    "images": (_file("images/scan.png"), "holds images/scan.png, which chip did not write"),
    "a history": (_file(".git/HEAD"), "holds .git/HEAD, which chip did not write"),
    "a name that a terminal would obey": (_file("a\x1b[2J"), r"holds a\\x1b\[2J, which"),
    "a linked folder": (_link, "holds images, which chip did not write"),
    "a link in a file's place": (_replaced_by_link, "holds config.json, which chip did not write"),
    "a longer file": (_file("config.json"), "holds config.json, which is not as chip wrote it"),
    "other weights": (_trained_on, f"holds {SHARDS[0]}, which is not as chip wrote it"),
    "no receipt": (lambda folder: (folder / RECEIPT).unlink(), f"there is no {RECEIPT} in it"),
    "a forged receipt": (_forged, "damaged, or changed by hand"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_output_that_somebody_has_changed_is_not_replaced(source: Checkpoint, output: Path, change: str) -> None:
    alter, message = CHANGES[change]
    alter(output)
    before = contents(output.parent)
    with pytest.raises(InputError, match=message):
        check_output(source, output, overwrite=True)
    assert contents(output.parent) == before


def test_what_was_removed_from_an_output_is_no_loss(source: Checkpoint, output: Path) -> None:
    next((output / "processor" / "inner").iterdir()).unlink()
    check_output(source, output, overwrite=True)
    shutil.rmtree(output)
    check_replaceable(output)
    output.mkdir()
    check_replaceable(output)


def test_a_source_that_chip_wrote_is_not_replaced_under_any_name(output: Path, tmp_path: Path) -> None:
    """It has a receipt, and yet is a source."""
    source = Checkpoint.open(output)
    (tmp_path / "alias").symlink_to(output)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for out in (output, tmp_path / "alias", output / "inner", tmp_path, tmp_path / "alias" / ".." / "out"):
        with pytest.raises(InputError, match="overlaps the source"):
            check_output(source, out, overwrite=True)
    for name in ("circle", "n" * 300, "nul\0"):
        with pytest.raises(InputError, match="cannot be used"):
            check_output(source, tmp_path / name, overwrite=True)


def test_another_name_for_the_source_is_seen_by_its_place_on_the_disk(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mount, or a disk that takes capital letters for small ones, gives one."""
    plain, alias = Path.samefile, tmp_path / "OUT"
    shutil.copytree(output, alias)
    check_output(Checkpoint.open(output), alias, overwrite=True)
    names = {str(alias), str(output)}
    monkeypatch.setattr(Path, "samefile", lambda a, b: {str(a), str(b)} == names or plain(a, b))
    with pytest.raises(InputError, match="overlaps the source"):
        check_output(Checkpoint.open(output), alias, overwrite=True)


def test_a_source_whose_receipt_is_damaged_is_refused_before_the_run(output: Path, tmp_path: Path) -> None:
    (output / RECEIPT).write_text("{}")
    with pytest.raises(InputError, match="damaged, or changed by hand"):
        check_output(Checkpoint.open(output), tmp_path / "second")
