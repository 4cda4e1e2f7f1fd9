"""Decoded images and batches of them keep within their pixels, and nothing is decoded twice that may stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from chip.data.record import Record
from chip.errors import InputError
from chip.model import decoded_images
from chip.model.batching import packing
from chip.model.batching.batch_size import BatchSize
from chip.model.decoded_images import DecodedImages


def _records(folder: Path, count: int) -> list[Record]:
    for number in range(count):
        Image.new("RGB", (10, 10), (number, 0, 0)).save(folder / f"{number}.png")
    return [Record("who", "a", (), folder / f"{number}.png", where=f"r:{number}") for number in range(count)]


def test_images_stay_decoded_within_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_images, "MOST_PIXELS", 250)  # two of them
    images, (a, b, c) = DecodedImages(), _records(tmp_path, 3)
    (first,) = images.open(a)
    (second,) = images.open(b)
    assert images.open(a)[0] is first
    images.open(c)
    assert images.open(a)[0] is first
    assert images.open(b)[0] is not second  # the one that was longest not asked for
    monkeypatch.setattr(decoded_images, "MOST_PIXELS", 1)
    assert images.open(c)[0] is images.open(c)[0]


def test_pixels_are_counted_by_headers_and_what_is_no_image_is_named(tmp_path: Path) -> None:
    a, b = _records(tmp_path, 2)
    images = DecodedImages()
    assert b.image is not None
    assert images.pixels(a) == 100
    assert images.pixels(Record("who", "a", (), a.image, more_images=(b.image,))) == 200
    assert images.pixels(Record("who", "a", (), None)) == 0
    (tmp_path / "none.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^r:7: the image .*none\.png cannot be read"):
        images.pixels(Record("who", "a", (), tmp_path / "none.png", where="r:7"))


@pytest.mark.parametrize(("records", "sizes"), [(None, [2, 1, 1, 1]), (8, [2, 1, 1, 1]), (1, [1, 1, 1, 1, 1])])
def test_a_batch_keeps_within_its_pixels(
    monkeypatch: pytest.MonkeyPatch, records: int | None, sizes: list[int]
) -> None:
    monkeypatch.setattr(packing, "MOST_PIXELS", 100)
    rows = [packing.PackedSequence((index,), 0, 3) for index in range(5)]
    pixels = [50, 50, 10, 101, 60]
    batches = list(packing.cut(rows, BatchSize(records), 4, lambda row: pixels[row.records[0]]))
    assert [len(batch) for batch in batches] == sizes
    assert [row for batch in batches for row in batch] == rows
