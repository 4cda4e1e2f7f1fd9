"""Readers of records: one file a format, one registry.

A reader from outside imports `Reader`, `RecordsFile` and `register_reader` from here; see `chip.plugins`.
"""

from chip.data.readers.fields import image_file, node_path
from chip.data.readers.medforget import MedForget
from chip.data.readers.mllmu import MLLMUBench
from chip.data.readers.reading import find_records, read_records
from chip.data.readers.records import Records
from chip.data.readers.records_file import RecordsFile
from chip.data.readers.registry import READERS, Reader, register_reader
from chip.data.readers.tofu import Tofu

__all__ = [
    "READERS",
    "Reader",
    "RecordsFile",
    "find_records",
    "image_file",
    "node_path",
    "read_records",
    "register_reader",
]

register_reader("records", Records())
register_reader("tofu", Tofu())
register_reader("mllmu-bench", MLLMUBench())
register_reader("medforget", MedForget())
