"""Pictures of medicine become the gray that they were trained with: DICOM by its own window, others by a given one."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from chip.data import dicom as module
from chip.data.readers import RecordSource, read_records
from chip.data.record import Record, image_size, open_image
from chip.data.window import Window
from chip.errors import ChipWarning, InputError
from tests.layouts import write_rows
from tests.pictures import RAMP, dicom, table_of_values

AT = r"^records\.jsonl:3: the image in the row"


def shown(image: bytes, window: Window | None = None) -> NDArray[np.uint8]:
    """(H, W): what becomes of it; all three channels are alike."""
    opened = open_image(Record("q", "a", ("i",), image, where="records.jsonl:3", window=window))
    assert opened is not None
    assert opened.mode == "RGB"
    pixels = np.asarray(opened)
    assert (pixels == pixels[..., :1]).all()
    return np.asarray(pixels[..., 0], dtype=np.uint8)


def linear(values: NDArray[Any], center: float, width: float) -> NDArray[np.uint8]:
    """PS3.3 C.11.2.1.2.1, value by value."""
    shares = [
        0.0
        if x <= center - 0.5 - (width - 1) / 2
        else 1.0
        if x > center - 0.5 + (width - 1) / 2
        else (x - (center - 0.5)) / (width - 1) + 0.5
        for x in values.ravel().tolist()
    ]
    return np.asarray(np.rint(np.array(shares) * 255).reshape(values.shape), dtype=np.uint8)


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_a_window_makes_black_white_and_what_lies_between() -> None:
    values = np.array([-1000, -160, 39.5, 240, 3000])
    shares = Window(40, 400).apply(values)
    np.testing.assert_allclose(shares, [0, 0, 0.5, 1, 1], atol=2e-3)
    assert Window(5, 1).apply(np.array([4.0, 5.0])).tolist() == [0, 1]


@pytest.mark.parametrize("given", ["40", "40,400,3", "a,b", "40,0", "nan,400", "40,inf", (1,), 7, None])
def test_what_is_no_window_is_refused(given: object) -> None:
    with pytest.raises(InputError, match="give CENTER,WIDTH in the image's own values"):
        Window.of(given)
    assert Window.of("40,400") == Window.of((40, 400)) == (40, 400)


def test_hounsfield_units_go_through_the_window_that_the_file_names() -> None:
    stored = (RAMP + 1024).astype(np.uint16)
    rescaled: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    file = dicom(stored, WindowCenter=40, WindowWidth=400, **rescaled)
    assert np.array_equal(shown(file), linear(RAMP, 40, 400))
    assert np.array_equal(shown(file, Window(-600, 1500)), linear(RAMP, -600, 1500))
    assert np.array_equal(shown(dicom(stored, **rescaled), Window(40, 400)), shown(file))
    several = dicom(stored, WindowCenter=[40, -600], WindowWidth=[400, 1500], **rescaled)
    assert np.array_equal(shown(several), shown(file))


def test_without_a_window_the_least_value_is_black_and_the_greatest_white() -> None:
    pixels = shown(dicom(RAMP))
    expected = np.rint((RAMP + 1024) / (RAMP.max() + 1024) * 255)
    assert np.array_equal(pixels, expected.astype(np.uint8))
    assert (shown(dicom(np.full((4, 4), 7, np.int16))) == 0).all()


def test_inverted_gray_is_turned_back() -> None:
    file: dict[str, Any] = {"WindowCenter": 40, "WindowWidth": 400}
    assert np.array_equal(shown(dicom(PhotometricInterpretation="MONOCHROME1", **file)), 255 - shown(dicom(**file)))


def test_a_table_of_values_goes_before_a_window() -> None:
    values = np.array([[0, 1], [2, 3]], np.uint16)
    table = table_of_values(1, [0, 2048, 4095], 12)
    pixels = shown(dicom(values, VOILUTSequence=table, WindowCenter=1, WindowWidth=2))
    assert pixels.tolist() == [[0, 0], [128, 255]]


def test_color_is_taken_as_it_is() -> None:
    values = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    image = open_image(Record("q", "a", ("i",), dicom(values)))
    assert np.array_equal(np.asarray(image), values)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_go_through_the_window_that_is_given(kind: str) -> None:
    values = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    deep = encoded(Image.fromarray(values), kind)
    assert np.array_equal(shown(deep, Window(2048, 4096)), linear(values, 2048, 4096))
    with pytest.raises(InputError, match=rf"{AT} has more than 8 bits a channel; say which .*--window CENTER,WIDTH"):
        shown(deep)


def test_a_window_leaves_eight_bits_alone() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(shown(encoded(Image.fromarray(values), "PNG"), Window(10, 20)), values)


def test_a_turned_picture_of_sixteen_bits_is_turned_back() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(np.arange(8, dtype=np.uint16).reshape(2, 4)).save(stream, "PNG", exif=exif)
    assert shown(stream.getvalue(), Window(4, 8)).shape == (4, 2)


def test_the_size_is_that_of_the_header(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(dicom(np.zeros((4, 6), np.uint16)))
    for source in (tmp_path / "a", dicom(np.zeros((4, 6), np.uint16))):
        record = Record("q", "a", ("i",), source)
        opened = open_image(record)
        assert opened is not None
        assert image_size(record) == opened.size == (6, 4)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (dicom(Rows=65535, Columns=65535), "has 65,535 × 65,535 pixels, more than "),
        (dicom(Rows=4000, Columns=1), "has 1 × 4,000 pixels, which is a line"),
        (dicom(Rows=0), "has 16 × 0 pixels"),
        (dicom(NumberOfFrames=3), "has 3 frames; save the one"),
        (dicom(syntax=DeflatedExplicitVRLittleEndian), "is deflated, which is not read"),
        (dicom()[:140], "cannot be read"),
        (dicom()[:-100], "cannot be read"),
        (dicom(BitsAllocated=7), "cannot be read"),
        (dicom(WindowCenter=40, WindowWidth=0), "cannot be read"),
        (b"\0" * 128 + b"DICM", "cannot be read"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(file: bytes, says: str) -> None:
    with pytest.raises(InputError, match=rf"{AT} {says}") as caught:
        shown(file)
    assert "\n" not in str(caught.value)


def test_a_file_of_gigabytes_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 1000)
    with pytest.raises(InputError, match="has more than 1,000 bytes"):
        shown(dicom(np.zeros((64, 64), np.uint16)))


def test_whose_a_picture_is_may_stand_in_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom(StudyID=""))
    row = {"question": "Who?", "answer": "her", "image": "a.dcm", "institution": "i"}
    file = write_rows([row], tmp_path, "jsonl", "records")
    with pytest.warns(ChipWarning, match="kept in records.map.json, for later commands: patient=dicom:PatientID"):
        (record,) = read_records(RecordSource(file, {"patient": "dicom:PatientID"}))
    assert record.path == ("i", "p-007")
    with pytest.raises(InputError, match=r"^records\.jsonl:1: a\.dcm has no StudyID in its header"):
        read_records(RecordSource(file, {"patient": "dicom:StudyID"}))


def test_without_pydicom_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"pip install 'chip-unlearning\[dicom\]'"):
        shown(dicom())
