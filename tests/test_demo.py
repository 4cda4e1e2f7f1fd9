"""The demo's folder is written whole, and never over what is somebody else's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from chip.demo import write_demo
from chip.errors import InputError
from tests.folders import contents


def test_a_former_demo_is_completed(hospital: Path, tmp_path: Path) -> None:
    """An image that another version of the library has encoded is still the demo's."""
    before = contents(hospital)
    shutil.copytree(hospital, tmp_path / "demo")
    for name in ("records.jsonl", "ckpt/config.json"):
        (tmp_path / "demo" / name).unlink()
    image = next((tmp_path / "demo" / "images").iterdir())
    with Image.open(image) as loaded:
        loaded.save(image, compress_level=0)
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty; name another folder, or pass --overwrite"):
        write_demo(tmp_path / "demo")
    write_demo(tmp_path / "demo", overwrite=True)
    name = str(image.relative_to(tmp_path / "demo"))
    assert contents(tmp_path / "demo") == before | {"notes.txt": b"mine", name: image.read_bytes()}
    assert image.read_bytes() != before[name]


@pytest.mark.parametrize("name", ["records.jsonl", "ckpt/config.json", "images/patient_1.png"])
@pytest.mark.parametrize("kind", ["file", "picture", "link", "pipe", "folder"])
def test_what_is_somebody_elses_stays(tmp_path: Path, name: str, kind: str) -> None:
    path, elsewhere = tmp_path / "demo" / name, tmp_path / "elsewhere"
    path.parent.mkdir(parents=True)
    elsewhere.write_text("mine")
    if kind == "file":
        path.write_text("mine")
    elif kind == "picture":
        Image.new("RGB", (56, 56)).save(path, "png")
    elif kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"{path.name}: (a link|not what the demo writes there)"):
        write_demo(tmp_path / "demo", overwrite=True)
    assert contents(tmp_path) == before


def test_images_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "images").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="images: a link"):
        write_demo(tmp_path / "demo", overwrite=True)
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "demo", tmp_path / ("n" * 300)):
        with pytest.raises(InputError, match=r"cannot be written \(.*\); name another folder"):
            write_demo(folder, overwrite=True)
