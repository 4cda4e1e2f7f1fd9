"""DICOM files, by pydicom: their gray as they, or the user, say it is to be shown, and what their headers hold."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chip.data.embedded_image import ImageSource, content_of, encoded_size
from chip.data.image_bounds import check_scans, check_size
from chip.data.window import Window, gray
from chip.errors import InputError, foreign_code

LARGEST = 1 << 29
"""Bytes of a file, at most."""
_PREAMBLE, _MARK = 128, b"DICM"
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1")
"""Transfer syntaxes in which a few bytes can become gigabytes: all of the file, or each frame, is deflated."""
_META = 2
"""The group of the elements that say how the others are written."""
_HINT = "replace it or drop the record; pylibjpeg reads more kinds of compression"


def is_dicom(source: ImageSource) -> bool:
    """Whether the file, or these bytes, begin as DICOM does. What cannot be opened is for a decoder to refuse."""
    if not isinstance(source, Path):
        return content_of(source)[_PREAMBLE : _PREAMBLE + len(_MARK)] == _MARK
    try:
        with source.open("rb") as file:
            return file.read(_PREAMBLE + len(_MARK))[_PREAMBLE:] == _MARK
    except OSError:
        return False


def is_keyword(word: str) -> bool:
    """Whether DICOM knows it, such as `PatientID`."""
    _pydicom()
    from pydicom.datadict import tag_for_keyword

    return tag_for_keyword(word) is not None


def header_value(source: ImageSource, keyword: str, where: str, name: str) -> str:
    """What the header says under a keyword of DICOM, such as `PatientID`, as text.

    Args:
        where, name: what messages call the record and the file.

    Raises:
        InputError: it is no DICOM file, or says nothing there.
    """
    if not is_dicom(source):
        raise InputError(f"{where}: {name} is no DICOM file, and says no {keyword}")
    value = _read(source, where, name, stop_before_pixels=True, specific_tags=[keyword]).get(keyword)
    if value is None or not str(value).strip():
        raise InputError(f"{where}: {name} has no {keyword} in its header")
    return str(value).strip()


def dicom_size(source: ImageSource, where: str, name: str) -> tuple[int, int]:
    """Width and height, from the header.

    Raises:
        InputError: as `decode_dicom`.
    """
    return _checked_size(_read(source, where, name, stop_before_pixels=True), where, name)


def decode_dicom(source: ImageSource, window: Window | None, where: str, name: str) -> Image.Image:
    """The picture as RGB.

    Gray values go through the modality transform (rescaling, or its table), then through the `window`, else through the
    file's own table or window of values of interest (the first one), else from its least value to its greatest.
    MONOCHROME1 is inverted. Pictures in color are taken as they are.

    Raises:
        InputError: it cannot be decoded, has several frames, or is too large.
    """
    dataset = _read(source, where, name)
    _checked_size(dataset, where, name)
    with foreign_code(where, f"{name} cannot be read", _HINT):
        if "JPEG" in dataset.file_meta.TransferSyntaxUID.name:
            check_scans(dataset.PixelData, f"{where}: {name}")
        return Image.fromarray(_pixels(dataset, window)).convert("RGB")


def _read(source: ImageSource, where: str, name: str, **options: Any) -> Any:
    """The file's dataset; pixels are not decoded."""
    pydicom = _pydicom()
    from pydicom.filereader import read_dataset, read_preamble

    size = encoded_size(source)
    if size > LARGEST:
        raise InputError(f"{where}: {name} has more than {LARGEST:,} bytes; save the picture by itself")
    content = io.BytesIO(content_of(source))
    with foreign_code(where, f"{name} cannot be read", _HINT):
        read_preamble(content, force=False)
        meta = read_dataset(content, False, True, stop_when=lambda tag, *_: tag.group != _META)
        if meta.get("TransferSyntaxUID") in _DEFLATED:
            raise InputError(f"{where}: {name} is deflated, which is not read; save it in another way, or as PNG")
        content.seek(0)
        return pydicom.dcmread(content, **options)


def _checked_size(dataset: Any, where: str, name: str) -> tuple[int, int]:
    with foreign_code(where, f"{name} cannot be read", _HINT):
        width, height, frames = int(dataset.Columns), int(dataset.Rows), int(dataset.get("NumberOfFrames") or 1)
    if width < 1 or height < 1:
        raise InputError(f"{where}: {name} has {width:,} × {height:,} pixels; drop the record")
    check_size(width, height, f"{where}: {name}")
    if frames > 1:
        raise InputError(
            f"{where}: {name} has {frames:,} frames; save the one that was trained on as a file of its own"
        )
    return width, height


def _pixels(dataset: Any, window: Window | None) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3): black to white, or red, green and blue."""
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    values = dataset.pixel_array  # color is turned into RGB here
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        return np.asarray(values >> (8 * (values.dtype.itemsize - 1)), dtype=np.uint8)
    if values.ndim == 3:
        return np.asarray(values >> max(0, dataset.BitsStored - 8), dtype=np.uint8)
    values = apply_modality_lut(values, dataset)
    shares = _own_window(values, dataset) if window is None else window.apply(values)
    return gray(1 - shares if dataset.PhotometricInterpretation == "MONOCHROME1" else shares)


def _own_window(values: NDArray[Any], dataset: Any) -> NDArray[np.float64]:
    """0..1 of each value, as the file says; without a word of it, from the least to the greatest."""
    from pydicom.pixels.processing import apply_voi, apply_windowing

    if dataset.get("VOILUTSequence"):
        white = 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        shown = apply_voi(np.rint(values).astype(np.int64), dataset)
        return np.asarray(shown / white, dtype=np.float64).clip(0, 1)
    if dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        # What it makes of black and of white depends on the bits and the rescaling: ask it for both.
        low, high = apply_windowing(np.array([-1e30, 1e30]), dataset)
        return np.asarray((apply_windowing(values, dataset) - low) / (high - low or 1.0), dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    return np.asarray((values - low) / max(high - low, 1e-30), dtype=np.float64)


def _pydicom() -> ModuleType:
    try:
        import pydicom
    except ImportError as error:
        raise InputError("reading DICOM needs pydicom: pip install 'chip-unlearning[dicom]'") from error
    return pydicom
