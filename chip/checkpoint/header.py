"""The header of a safetensors file: which tensors it holds, and where. Read by our own code, as strict as it can be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chip.checkpoint.file_signature import FileSignature
from chip.checkpoint.json_file import parse_json_object
from chip.checkpoint.paths import damaged_file, input_error, open_inside, quoted

if TYPE_CHECKING:  # torch takes a second, and who only compares bytes does without
    import torch

_LENGTH_FIELD = 8  # bytes before the header, which hold its length
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_MOST_DIMENSIONS = 64  # what numpy has room for
_SIZES = range(2**63)  # what a file system can count

_SAVE_AGAIN = "save it as BF16 or F32"

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes, as safetensors writes them, whose values are the weights themselves, and can be edited."""

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint, and the bytes it takes."""

    name: str
    """Name on disk, which is often not the module's."""
    shard: str
    """File that holds it, relative to the folder."""
    dtype: str
    """As safetensors writes it: `BF16`, `F32`, ..."""
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the start of the shard."""
    end: int
    """The byte after the last."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same dtype in torch. Raises `InputError` if chip does not read it (4 bits, complex, ...)."""
        import torch

        if self.dtype not in _TORCH_NAMES:
            raise input_error(Path(self.shard), f"cannot read tensor {quoted(self.name)}, {self.dtype}", _SAVE_AGAIN)
        dtype: torch.dtype = getattr(torch, _TORCH_NAMES[self.dtype])
        return dtype


def read_header(folder: Path, shard: str) -> tuple[list[TensorEntry], FileSignature]:
    """The tensors of a shard in the order of their bytes, and the signature that the file had.

    Their bytes leave no gap and reach the end of the file.

    Raises:
        InputError: as `open_inside` does, and where the header is damaged or does not fit the file.
    """
    path = folder / shard
    with open_inside(folder, shard) as file:
        signature = FileSignature.of_open(file)
        length = int.from_bytes(file.read(_LENGTH_FIELD), "little")
        if length > _LONGEST_HEADER:
            raise damaged_file(path, f"its header claims {length:,} bytes, more than {_LONGEST_HEADER:,}")
        start = _LENGTH_FIELD + length
        if signature.size < start:
            raise damaged_file(path, f"its header should end at byte {start:,}, and the file at {signature.size:,}")
        text = file.read(length)
    header = parse_json_object(path, text, parse_int=_parse_size)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged_file(path, "'__metadata__' is not a table of strings")
    entries = [_parse_entry(path, shard, start, name, spec) for name, spec in header.items()]
    _sort_by_bytes(path, entries, start, signature.size)
    return entries, signature


def _parse_entry(path: Path, shard: str, start: int, name: str, spec: object) -> TensorEntry:
    match spec:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end], **others} if not others:
            pass
        case _:
            what = f"tensor {quoted(name)} has no dtype, shape and two data_offsets, or more than these"
            raise damaged_file(path, what)
    if dtype not in _BITS:
        raise input_error(path, f"tensor {quoted(name)} has the unknown dtype {quoted(dtype)}", _SAVE_AGAIN)
    if len(shape) > _MOST_DIMENSIONS or not _are_sizes([*shape, begin, end]):
        raise damaged_file(path, f"tensor {quoted(name)} has a shape or offsets that are no sizes")
    numel = _numel(shape)
    if numel is None or numel * _BITS[dtype] != (end - begin) * 8:
        raise damaged_file(path, f"tensor {quoted(name)}, {dtype} {shape}, does not fit its {end - begin:,} bytes")
    return TensorEntry(name, shard, dtype, tuple(shape), start + begin, start + end)


def _sort_by_bytes(path: Path, entries: list[TensorEntry], start: int, size: int) -> None:
    """In place; an error where the entries leave a gap between `start` and `size`, or overlap."""
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    expected = start
    for entry in entries:
        if entry.begin != expected:
            what = f"tensor {quoted(entry.name)} begins at byte {entry.begin:,}, not at {expected:,}"
            raise damaged_file(path, what)
        expected = entry.end
    if expected != size:
        raise damaged_file(path, f"its tensors end at byte {expected:,}, and the file at {size:,}")


def _parse_size(digits: str) -> int | None:
    """A whole number as the safetensors library reads sizes: to it, -0 is none. None, for what can be no size."""
    return int(digits) if digits.isdecimal() and len(digits) <= len(str(_SIZES.stop)) else None


def _are_sizes(values: Iterable[object]) -> bool:
    """Whether each value is an integer that could be a size; True and False, ints to Python, are not."""
    return all(type(value) is int and value in _SIZES for value in values)


def _numel(shape: Iterable[int]) -> int | None:
    """How many values a shape holds; None once that is no size.

    Like torch, which has to find strides, it takes zeros for ones until the end: [0, 2**62, 4] is refused.
    """
    numel, empty = 1, False
    for size in shape:
        numel *= size or 1
        empty = empty or not size
        if numel not in _SIZES:
            return None
    return 0 if empty else numel
