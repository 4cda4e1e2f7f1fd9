"""Where the records are, and what they are."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from chip.data.files import check_readable
from chip.data.readers.chat_marks import without_marks
from chip.data.readers.consistency import warn_of_repeats
from chip.data.readers.records_file import PARQUET, RecordsFile
from chip.data.readers.registry import READERS, find_reader
from chip.data.record import Record
from chip.errors import ChipWarning, InputError, one_line

_TABLES = (".parquet", ".json", ".jsonl", ".csv", ".arrow")
_BESIDE = ("records.jsonl", "records.parquet")  # looked for next to a checkpoint folder, in this order


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
        beside = [name for name in _BESIDE if (place / name).is_file()]
        if len(beside) > 1:
            warnings.warn(
                f"{beside[0]} is read, and not {beside[1]} beside it; name the file", ChipWarning, stacklevel=2
            )
        if beside:
            return place / beside[0]
    if named := os.environ.get("CHIP_RECORDS"):
        return Path(named)
    raise InputError(
        f"no file is given; name one, put {' or '.join(_BESIDE)} into {folder}, or set CHIP_RECORDS",
        argument="records",
    )


def read_records(file: Path) -> list[Record]:
    """Read a file of records in any format that a reader is registered for, or a folder of such files.

    A folder holds what is split into forget and retain files; a record that occurs in several of them is kept once.

    What a chat format writes around questions and answers is taken out of them; what occurs more than once is said by
    `ChipWarning`s.

    Raises:
        InputError: the file cannot be read or holds no records, or one of them is not as it should be, or
            its image file does not exist. All records are checked before any is returned.
    """
    try:
        records = list(without_marks(_read(RecordsFile(file)), file.name))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({one_line(error)}); check the path") from error
    if not records:
        raise InputError(f"{file}: holds no records; write one JSON object a line")
    warn_of_repeats(records, file.name)
    return records


def _read(file: RecordsFile) -> list[Record]:
    check_readable(file.path)
    reader = find_reader(file)
    if reader is not None:
        return list(reader.read(file))
    if file.path.is_dir():
        return _read_folder(file.path)
    if file.kind == PARQUET:
        columns = ", ".join(sorted(file.columns)) or "none"
        raise InputError(
            f"{file.path}: no reader knows its columns ({columns}); there are {', '.join(READERS)}, and records have "
            "question, answer and institution"
        )
    raise InputError(f"{file.path}: not a kind of records file; use .jsonl, .parquet or a folder of .parquet files")


def _read_folder(folder: Path) -> list[Record]:
    paths = sorted(folder.glob("*.parquet")) or sorted(folder.glob("*.json"))
    if not paths:
        raise InputError(f"{folder}: no .parquet file in this folder, and no .json file; name the records file itself")
    tables = sorted(path for path in folder.iterdir() if path.suffix in _TABLES)
    if unread := [path.name for path in tables if path not in paths]:
        kind = paths[0].suffix
        message = f"{folder.name}: of this folder only {kind} files are read, and not {', '.join(unread)}"
        warnings.warn(message, ChipWarning, stacklevel=2)
    records: list[Record] = []
    for path in paths:
        known = set(records)
        records += [record for record in _read(RecordsFile(path)) if record not in known]
    return records
