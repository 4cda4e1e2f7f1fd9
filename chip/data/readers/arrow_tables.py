"""Tables in Arrow's formats: parquet files by pyarrow; Arrow files, and folders that `datasets` has saved, by that.

Images are never decoded here: a row has their bytes and their path, as `datasets` stores them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chip.errors import InputError, foreign_code, one_line

SAVED = ("state.json", "dataset_info.json")
"""Files of a folder that `Dataset.save_to_disk` has written."""
SAVED_SPLITS = "dataset_dict.json"
"""The file that names the splits of a folder that `DatasetDict.save_to_disk` has written."""

_WITH_CONTENTS = b"ARROW1"
"""How an Arrow file begins that is no stream."""

_ROWS = 64  # of a parquet file, at once
_INSTALL = "pip install 'chip-unlearning[datasets]'"


def parquet_columns(path: Path) -> list[str]:
    """Raises `InputError` where the file is not whole."""
    with _parquet(path) as parquet:
        names: list[str] = parquet.schema_arrow.names
    return names


def parquet_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows, each with its place, counted from 0. Raises `InputError` where the file is not whole."""
    number = 0
    with _parquet(path) as parquet:
        for batch in parquet.iter_batches(batch_size=_ROWS, columns=sorted(columns)):
            for row in batch.to_pylist():
                yield row, f"{path.name}:row {number}"
                number += 1


def saved_columns(path: Path) -> list[str]:
    """Of an Arrow file or a saved dataset. Raises `InputError` where it is not whole."""
    names: list[str] = _dataset(path).column_names
    return names


def saved_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of an Arrow file or a saved dataset, each with its place, counted from 0."""
    batches = _dataset(path).select_columns(sorted(columns)).iter(batch_size=_ROWS)
    number = 0
    while True:
        with foreign_code(f"{path.name}:row {number}", "cannot be read", "save the dataset again"):
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        for row in rows:
            yield row, f"{path.name}:row {number}"
            number += 1


def saved_splits(path: Path) -> list[str]:
    """The splits of a saved `DatasetDict`, each a folder in it."""
    datasets = _datasets()
    with foreign_code(path, "is no saved dataset that can be read", "save it again"):
        return list(datasets.DatasetDict.load_from_disk(str(path)))


def _dataset(path: Path) -> Any:
    """Mapped into memory; rows come as Arrow has them, so that no image is decoded, in whatever list it stands."""
    datasets = _datasets()
    with foreign_code(path, "is no Arrow file or saved dataset that can be read", "save it again"):
        dataset = datasets.load_from_disk(str(path)) if path.is_dir() else _of_file(path, datasets)
        return dataset.with_format("arrow")


def _of_file(path: Path, datasets: Any) -> Any:
    """Of an Arrow file in either form: a stream, as `datasets` writes it, or with a table of contents, as others do."""
    import pyarrow as pa

    with path.open("rb") as file:
        if file.read(len(_WITH_CONTENTS)) != _WITH_CONTENTS:
            return datasets.Dataset.from_file(str(path))
    return datasets.Dataset(pa.ipc.open_file(pa.memory_map(str(path))).read_all())


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """The file, as `pyarrow.parquet.ParquetFile` has it; what it raises becomes an `InputError`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(f"reading parquet needs pyarrow: {_INSTALL}") from error
    try:
        with pq.ParquetFile(path) as parquet:
            yield parquet
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a whole parquet file ({one_line(error)}); fetch it again") from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"reading Arrow files and saved datasets needs datasets: {_INSTALL}") from error
    return datasets
