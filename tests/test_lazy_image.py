"""Large images: decoded once, and what a processor makes of them is made once, and is the same to the bit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature, CLIPImageProcessorPil, Qwen2VLImageProcessorPil

from chip.data import record
from chip.data.image_file import decode_image
from chip.data.record import Record
from chip.errors import InputError
from chip.model import decoded_images, lazy_image
from chip.model.decoded_images import DecodedImages
from chip.model.lazy_image import LazyImage, Results, remember_results


class Thumbnails:
    """Stands in for an image processor: all images of a call as one tensor, smaller than the images."""

    calls = 0

    def __init__(self, mean: float = 0.0) -> None:
        self.mean = mean

    def __call__(self, images: Any, **options: Any) -> BatchFeature:
        return self.preprocess(images, **options)

    def preprocess(self, images: Any, side: int = 2, **_: Any) -> BatchFeature:
        self.calls += 1
        flat = list(lazy_image._leaves(images))
        arrays = [np.asarray(image.resize((side, side)), dtype=np.float32) for image in flat]
        return BatchFeature(
            {"pixel_values": torch.from_numpy(np.stack(arrays)) - self.mean, "sizes": [i.size for i in flat]}
        )


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """One is a JPEG that lies on its side, one is PNG, one is small."""
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate(((40, 30), (50, 20), (3, 3))):
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 0 else 1
        image.save(tmp_path / f"{number}.{'jpg' if number == 0 else 'png'}", exif=exif)
    return [Record("who", "a", (), file, where=f"r:{n}") for n, file in enumerate(sorted(tmp_path.iterdir()))]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were decoded since, by name."""
    names: list[str] = []

    def counting(source: Any, *args: Any) -> Image.Image:
        names.append(source.name)
        return decode_image(source, *args)

    monkeypatch.setattr(record, "decode_image", counting)
    monkeypatch.setattr(decoded_images, "LARGE", 100)
    monkeypatch.setattr(decoded_images, "MOST_PIXELS", 1)  # of decoded ones only the last stays
    return names


def test_a_large_image_is_as_if_it_had_been_decoded(records: list[Record], decoded: list[str]) -> None:
    images = DecodedImages()
    for about in records:
        (image,) = images.open(about)
        (plain,) = record.open_images(about)
        decoded.clear()
        assert (image.mode, image.size) == (plain.mode, plain.size)
        assert isinstance(image, LazyImage) == (about is not records[2])
        assert decoded == []
        np.testing.assert_array_equal(np.asarray(image.crop((1, 1, 3, 3))), np.asarray(plain.crop((1, 1, 3, 3))))
        np.testing.assert_array_equal(np.array(image), np.array(plain))
        assert len(decoded) <= 1
        if isinstance(image, LazyImage):
            image.putpixel((0, 0), (1, 2, 3))  # changes nobody else's
        np.testing.assert_array_equal(np.asarray(images.open(about)[0]), np.asarray(plain))


def test_what_was_made_of_large_images_is_not_made_again(records: list[Record], decoded: list[str]) -> None:
    images, processor, plain = DecodedImages(), Thumbnails(), Thumbnails()
    remember_results(processor, Results())
    calls: tuple[tuple[list[list[Record]], dict[str, Any]], ...] = (
        ([[records[0]]], {}),
        ([[records[1]]], {}),
        ([[records[0]]], {"side": 3}),
        ([[records[0]], [records[2]]], {}),
        ([[records[0], records[2]]], {}),
        ([[records[2], records[0]]], {}),
    )
    expected = [plain([[record.open_images(r)[0] for r in row] for row in rows], **options) for rows, options in calls]
    for again in (False, True):
        decoded.clear()
        for (rows, options), right in zip(calls, expected, strict=True):
            result = processor([[images.open(r)[0] for r in row] for row in rows], **options)
            assert torch.equal(result["pixel_values"], right["pixel_values"])
            assert result.pop("sizes") == right["sizes"]  # processors take out what is not the model's
            result["pixel_values"].zero_()
        assert processor.calls == len(calls)
        assert set(decoded) == ({"2.png"} if again else {"0.jpg", "1.png", "2.png"})


def test_a_processor_of_the_same_settings_knows_what_another_made(records: list[Record], decoded: list[str]) -> None:
    """The edited model's is the source's; a picture may have changed meanwhile."""
    results, (first, second, other) = Results(), (Thumbnails(), Thumbnails(), Thumbnails(mean=1.0))
    for processor in (first, second, other):
        remember_results(processor, results)
    expected = first(DecodedImages().open(records[0]))["pixel_values"]
    decoded.clear()
    assert torch.equal(second(DecodedImages().open(records[0]))["pixel_values"], expected)
    assert decoded == []
    assert torch.equal(other(DecodedImages().open(records[0]))["pixel_values"], expected - 1)
    assert isinstance(records[0].image, Path)
    records[0].image.write_bytes(records[1].images[0].read_bytes())  # type: ignore[union-attr]
    changed = second(DecodedImages().open(records[0]))["pixel_values"]
    assert torch.equal(changed, first(DecodedImages().open(records[1]))["pixel_values"])


def test_a_processor_of_transformers_remembers_and_is_saved_as_it_was(
    records: list[Record], decoded: list[str], tmp_path: Path
) -> None:
    makers: tuple[Callable[[], Any], ...] = (
        (lambda: CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})),
        (lambda: Qwen2VLImageProcessorPil(patch_size=2, min_pixels=64, max_pixels=256)),
    )
    for number, make in enumerate(makers):
        plain, processor, images = make(), make(), DecodedImages()
        remember_results(processor, Results())
        expected = plain([record.open_images(r) for r in records[:2]], return_tensors="pt")
        for again in (False, True):
            decoded.clear()
            result = processor([images.open(r) for r in records[:2]], return_tensors="pt")
            assert set(decoded) == (set() if again else {"0.jpg", "1.png"})
            assert result.keys() == expected.keys()
            assert all(torch.equal(result[name], expected[name]) for name in expected)
        processor.save_pretrained(tmp_path / str(number))
        assert type(plain).from_pretrained(tmp_path / str(number)).to_dict() == plain.to_dict()


def test_small_images_and_what_cannot_be_compared_are_made_again(records: list[Record], decoded: list[str]) -> None:
    images, processor = DecodedImages(), Thumbnails()
    remember_results(processor, Results())
    for _ in range(2):
        processor(images.open(records[2]))
    assert processor.calls == 2
    for _ in range(2):
        processor(images.open(records[0]), lock=threading.Lock())
    assert processor.calls == 4


def test_results_stay_within_their_bytes(
    records: list[Record], decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, processor = DecodedImages(), Thumbnails()
    remember_results(processor, Results())
    monkeypatch.setattr(lazy_image, "MOST_BYTES", 60)  # 2 x 2 x 3 x 4 bytes are 48
    made: list[int] = []
    for about in (records[0], records[1], records[0], records[1]):
        processor(images.open(about))
        made.append(processor.calls)
    assert made == [1, 2, 2, 3]


def test_a_large_image_that_is_broken_is_named(records: list[Record], decoded: list[str]) -> None:
    assert isinstance(records[1].image, Path)
    data = records[1].image.read_bytes()
    records[1].image.write_bytes(data[: len(data) // 2])
    (image,) = DecodedImages().open(records[1])
    with pytest.raises(InputError, match=r"^r:1: the image .*1\.png cannot be read"):
        image.resize((2, 2))
