"""Readers of records: one file a format, one registry.

A reader from outside imports `Reader`, `RecordsFile` and `register_reader` from here; see `chip.plugins`.
"""

from chip.data.readers.alpaca import Alpaca
from chip.data.readers.conversations import Conversations
from chip.data.readers.fields import image_file, node_path
from chip.data.readers.images import Images
from chip.data.readers.medforget import MedForget
from chip.data.readers.messages import Messages
from chip.data.readers.mimic_cxr_vqa import MIMICCXRVQA
from chip.data.readers.mllmu import MLLMUBench
from chip.data.readers.pmc_vqa import PMCVQA
from chip.data.readers.reading import BESIDE, find_records, find_source, read_records
from chip.data.readers.records import Records
from chip.data.readers.records_file import RecordsFile
from chip.data.readers.registry import READERS, Reader, register_reader
from chip.data.readers.source import RecordSource
from chip.data.readers.swift import HumanAssistant, QueryResponse
from chip.data.readers.tofu import Tofu
from chip.data.readers.trl import PromptCompletion

__all__ = [
    "BESIDE",
    "READERS",
    "Images",
    "Reader",
    "RecordSource",
    "RecordsFile",
    "find_records",
    "find_source",
    "image_file",
    "node_path",
    "read_records",
    "register_reader",
]

register_reader("records", Records())
register_reader("messages", Messages())
register_reader("conversations", Conversations())
register_reader("query-response", QueryResponse())
register_reader("human-assistant", HumanAssistant())
register_reader("alpaca", Alpaca())
register_reader("prompt-completion", PromptCompletion())
register_reader("tofu", Tofu())
register_reader("pmc-vqa", PMCVQA())
register_reader("mimic-cxr-vqa", MIMICCXRVQA())
register_reader("mllmu-bench", MLLMUBench())
register_reader("medforget", MedForget())
