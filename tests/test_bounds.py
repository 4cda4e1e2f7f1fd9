"""What is refused before it is read: pictures beyond all measure, pipes, lines without end, models that compute NaN."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import chip
from chip.checkpoint.paths import check_all_files
from chip.data.image_bounds import LONGEST_RATIO, MOST_PIXELS, MOST_SCANS
from chip.data.keep import read_keep
from chip.data.readers import read_records, records_file
from chip.data.record import Record, image_size, open_image
from chip.edit_options import Terms
from chip.errors import InputError
from chip.model.batching.batch_size import BatchSize
from tests.families import UNTRAINED, build, write_records
from tests.hostile.images import many_scans, png


def shown(image: bytes) -> Record:
    return Record("who", "left", ("i",), image, where="records.jsonl:7")


def encoded(width: int, height: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 40)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_pictures_of_the_usual_kinds_are_opened(kind: str) -> None:
    image = open_image(shown(encoded(40, 30, kind)))
    assert image is not None
    assert image.size == (40, 30)
    assert all(abs(a - b) < 6 for a, b in zip(image.getpixel((20, 15)), (90, 120, 40), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "trouble"),
    [
        (png(MOST_PIXELS // 1024 + 1, 1024), "more than 67,108,864"),
        (encoded(LONGEST_RATIO + 1, 1), "which is a line"),
        (encoded(1, LONGEST_RATIO + 1), "which is a line"),
        (encoded(40, 30, "PDF"), "cannot be read"),
        (encoded(40, 30, "EPS"), "cannot be read"),
    ],
)
@pytest.mark.parametrize("look", [open_image, image_size])
def test_pictures_beyond_measure_name_their_record(
    image: bytes, trouble: str, look: Callable[[Record], object]
) -> None:
    with pytest.raises(InputError, match=rf"^records\.jsonl:7: the image in the row.*{trouble}"):
        look(shown(image))


def test_the_longest_picture_that_is_no_line() -> None:
    assert image_size(shown(encoded(LONGEST_RATIO, 1))) == (LONGEST_RATIO, 1)


def test_a_jpeg_of_a_thousand_scans_is_not_decoded() -> None:
    with pytest.raises(InputError, match=f"more than {MOST_SCANS} scans"):
        open_image(shown(many_scans(1000)))
    assert open_image(shown(many_scans(10))) is not None


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    for name in ("records.jsonl", "records.parquet", "keep.txt", "tokenizer.json"):
        os.mkfifo(tmp_path / name)
    for name in ("records.jsonl", "records.parquet"):
        with pytest.raises(InputError, match=f"{name}: cannot be read .*a pipe or a device"):
            read_records(tmp_path / name)
    with pytest.raises(InputError, match="a pipe or a device"):
        read_keep([tmp_path / "keep.txt"])
    with pytest.raises(InputError, match="is a pipe or a device"):
        check_all_files(tmp_path)


def test_a_line_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_file, "_LONGEST_LINE", 100)
    row = b'{"question": "q", "answer": "a", "institution": "i"}\n'
    file = tmp_path / "records.jsonl"
    file.write_bytes(row + b'{"question": "' + b"a" * 200)
    with pytest.raises(InputError, match=r"^records\.jsonl:2: has more than 100 bytes"):
        read_records(file)
    file.write_bytes(row)
    assert len(read_records(file)) == 1


@pytest.mark.parametrize(
    ("part", "trouble"),
    [
        ("linear_1.weight", r"linear_[12]: .*NaN or infinite"),
        ("lm_head.weight", r"^records\.jsonl:\d+: the model's answer is NaN"),
    ],
)
def test_a_model_that_computes_nan_is_refused(tmp_path: Path, part: str, trouble: str) -> None:
    write_records(tmp_path)
    ckpt = build(tmp_path / "ckpt", "llava", max_shard_size="10MB")
    file = ckpt / "model.safetensors"
    tensors = load_file(file)
    next(value for name, value in tensors.items() if part in name).view(-1)[0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=trouble):
        chip.edit(
            ckpt,
            ["patient_1"],
            device="cpu",
            dry_run=True,
            method=chip.methods.Shielded(retain_weight=8.0),
            **UNTRAINED,
        )
    if part == "lm_head.weight":
        with pytest.raises(InputError, match=trouble):
            chip.evaluate(ckpt, ["patient_1"], device="cpu")


@pytest.mark.parametrize("function", [chip.edit, chip.evaluate, chip.inspect, chip.reproduce])
def test_a_keyword_that_does_not_exist_is_named(function: Callable[..., object]) -> None:
    message = rf"^{function.__name__}\(\) got an unexpected keyword argument 'devise'; did you mean 'device'\?$"
    with pytest.raises(TypeError, match=message):
        function("checkpoint", "source", *["node"] * (function is chip.reproduce), devise="cpu")


@pytest.mark.parametrize("label", ["a\nb", "a\x1b[2Jb", "a\udcffb"])
def test_a_label_can_be_shown(label: str) -> None:
    with pytest.raises(InputError, match="holds what cannot be shown"):
        Terms(label, max_left=None, accept=False, force=False, size=BatchSize())
