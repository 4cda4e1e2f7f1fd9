"""Radiographs as scanners write them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

RAMP = np.arange(-1024, 1024, 8, dtype=np.int16).reshape(16, 16)
"""Hounsfield units from air to bone."""


def dicom(values: NDArray[Any] = RAMP, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> bytes:
    """A DICOM file whose pixels are these, as they are stored: before any rescaling; nothing is compressed."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=["chip"])
    meta.TransferSyntaxUID = UID(syntax)
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID, file.PatientID = CTImageStorage, meta.MediaStorageSOPInstanceUID, "p-007"
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel = 3 if values.ndim == 3 else 1
    file.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        file.PlanarConfiguration = 0
    bits = 8 * values.dtype.itemsize
    file.BitsAllocated, file.BitsStored, file.HighBit = bits, bits, bits - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    compressed = UID(syntax).is_compressed and syntax != DeflatedExplicitVRLittleEndian
    file.PixelData = encapsulate([values.tobytes()]) if compressed else values.tobytes()
    file["PixelData"].VR = "OB" if compressed else "OW"
    for keyword, value in elements.items():
        setattr(file, keyword, value)
    stream = io.BytesIO()
    file.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def table_of_values(first: int, entries: list[int], bits: int) -> list[Dataset]:
    """A VOI LUT Sequence: what each value from the first on becomes."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new(0x00283006, "US", entries)  # LUTData, whose type depends on the descriptor
    return [item]
