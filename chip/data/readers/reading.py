"""Where the records are, and what they are."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from chip.data.readers.arrow_tables import SAVED_SPLITS, saved_splits
from chip.data.readers.chat_marks import without_marks
from chip.data.readers.consistency import warn_of_repeats
from chip.data.readers.csv_table import DELIMITERS
from chip.data.readers.fields import listed_columns
from chip.data.readers.records_file import ARROW, JSON_LINES, PARQUET, RecordsFile
from chip.data.readers.registry import READERS, find_reader
from chip.data.readers.source import KEPT, RecordSource
from chip.data.record import VALIDATION, Record
from chip.errors import ChipWarning, InputError, one_line
from chip.regular_file import check_regular_file

_TABLES = (PARQUET, *JSON_LINES, *DELIMITERS, ARROW)
BESIDE = ("records.jsonl", "records.parquet")  # looked for next to a checkpoint folder, in this order
_HELD_OUT = {
    **dict.fromkeys(("test", "eval"), "test"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev"), VALIDATION),
}
_WORD = re.compile(r"[^\W\d_]+")
_LISTS = ("dataset_info.json", "dataset_infos.json")  # of data sets: LLaMA-Factory's, and of `datasets`
_IN_FOLDERS = (PARQUET, ".json", ".jsonl", ".csv")
"""Kinds of files that are looked for in a folder: the first that is there."""
_OF_IMAGES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # beside the images of a folder


def find_records(checkpoint: Path, given: Path | None, base: Path | None = None) -> Path:
    """Where the records are: `given`, else beside the checkpoint folder, or the one of its base, else `CHIP_RECORDS`.

    Whether the file named by `given` or `CHIP_RECORDS` exists is for `read_records` to say.

    Raises:
        InputError: none of the three leads to a file.
    """
    if given is not None:
        return given
    # Not resolve(): the records lie beside the folder that was named, even where that is a link.
    folder, *more = (Path(os.path.abspath(each)).parent for each in (checkpoint, base or checkpoint))  # noqa: PTH100
    for place in (folder, *more):
        beside = [name for name in BESIDE if (place / name).is_file()]
        if len(beside) > 1:
            message = f"{beside[0]} is read, and not {beside[1]} beside it; name the file"
            warnings.warn(message, ChipWarning, stacklevel=2)
        if beside:
            return place / beside[0]
    if named := os.environ.get("CHIP_RECORDS"):
        return Path(named)
    raise InputError(
        f"no file is given; name one, put {' or '.join(BESIDE)} into {folder}, or set CHIP_RECORDS",
        argument="records",
    )


def find_source(checkpoint: Path, given: Path | str | RecordSource | None, base: Path | None = None) -> RecordSource:
    """How the records are to be read; where no file is given, that of `find_records`."""
    source = given if isinstance(given, RecordSource) else RecordSource(given)
    return replace(source, file=find_records(checkpoint, None if source.file is None else Path(source.file), base))


def read_records(given: Path | RecordSource) -> list[Record]:
    """Read a file of records in any format that a reader is registered for, or a folder of such files.

    A folder holds what is split into forget and retain files, into the splits of a dataset, or images with a file
    `metadata.csv` (`.jsonl`, `.parquet`) beside them; a record that occurs in several of its files is kept once.

    What a chat format writes around questions and answers is taken out of them; what occurs more than once is said by
    `ChipWarning`s. A map, a window and a folder of images that are given are kept beside the records, and taken from
    there where none is given; both are said.

    Raises:
        InputError: the file cannot be read or holds no records, or one of them is not as it should be, belongs nowhere,
            or its image file does not exist. All records are checked before any is returned.
    """
    source = given if isinstance(given, RecordSource) else RecordSource(given)
    file = source.path
    try:
        check_regular_file(file, or_folder=True)
        source = source.with_kept()
        read = _read(RecordsFile(file, source.images_folder, source.owners()))
        records = list(without_marks(read, file.name))
        if (window := source.gray_window) is not None:
            records = [replace(record, window=window) for record in records]
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({one_line(error)}); check the path") from error
    if not records:
        raise InputError(f"{file}: holds no records; write one JSON object a line")
    warn_of_repeats(records, file.name)
    source.keep()
    return records


def _read(file: RecordsFile) -> list[Record]:
    check_regular_file(file.path, or_folder=True)
    reader = find_reader(file)
    if reader is not None:
        records = list(reader.read(file))
        if records and file.owners is not None and not file.asked_owners:
            raise InputError("the reader of this format takes no map; leave it out", argument="map")
        return records
    if file.path.is_dir():
        return _read_folder(file)
    if file.kind in _TABLES:
        what = f"no reader knows its columns ({listed_columns(file.columns)})"
        hint = f"there are {', '.join(READERS)}, and records have question, answer and institution"
        raise InputError(f"{file.path}: {what}; {hint}")
    raise InputError(f"{file.path}: not a kind of records file; use .jsonl, .csv, .parquet or a folder of such files")


def _read_folder(folder: RecordsFile) -> list[Record]:
    files = list(_files_in(folder.path))
    if not files:
        message = f"no {', '.join(_IN_FOLDERS)} file in this folder; name the records file itself"
        raise InputError(f"{folder.path}: {message}")
    read = {path for path, _ in files}
    tables = sorted(path for path in folder.path.iterdir() if path.suffix in _TABLES and not path.name.endswith(KEPT))
    if unread := [path.name for path in tables if path not in read and path.name != SAVED_SPLITS]:
        kinds = " and ".join(sorted({path.suffix for path in read} - {""})) or "saved"
        message = f"{folder.path.name}: of this folder only {kinds} files are read, and not {', '.join(unread)}"
        warnings.warn(message, ChipWarning, stacklevel=2)
    if held_out := {path.name: split for path, split in files if split != "train"}:
        listed = ", ".join(f"{name} ({split})" for name, split in held_out.items())
        message = f"{folder.path.name}: held out, as their names say: {listed}"
        warnings.warn(message, ChipWarning, stacklevel=2)
    records: list[Record] = []
    for path, split in files:
        known = set(records)
        records += [record for record in _read(folder.within(path, split)) if record not in known]
    return records


def _files_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files that hold the folder's records, and the split that each is of."""
    if (folder / SAVED_SPLITS).is_file():
        return ((folder / name, _split(name)) for name in saved_splits(folder))
    if of_images := [
        path for name in _OF_IMAGES for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_file()
    ]:
        return ((path, "train" if path.parent == folder else _split(path.parent.name)) for path in of_images)
    for pattern in (f"{place}*{kind}" for kind in _IN_FOLDERS for place in ("", "data/")):
        if paths := sorted(path for path in folder.glob(pattern) if _is_table(path)):
            return ((path, _split(path.stem)) for path in paths)
    return iter(())


def _is_table(path: Path) -> bool:
    return not path.name.endswith(KEPT) and path.name not in _LISTS


def _split(name: str) -> str:
    """What records call the split that a file, folder or dataset of this name holds, as `datasets` reads it.

    One word of it says so: `test`, `test-00000-of-00001`, `vqa_val`. What is not known to be held out was trained on.
    """
    words = _WORD.findall(name.casefold())
    held_out = (_HELD_OUT[word] for word in words if word in _HELD_OUT)
    return "train" if "train" in words else next(held_out, "train")
