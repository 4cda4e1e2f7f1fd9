"""Where the tensors of a checkpoint folder lie: headers and index are read, weights only when asked for."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from chip.checkpoint.paths import inside, opened, quoted, refusal
from chip.errors import InputError, RunError, printable

__all__ = ["CONFIG", "INDEX", "SINGLE", "Checkpoint", "Stamp", "TensorEntry", "inside"]

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_LENGTH_FIELD = 8  # bytes before the header, which hold its length
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_LONGEST_JSON = 100_000_000  # bytes of a config or index; the longest known take a few million
_MOST_DIMENSIONS = 64  # what numpy has room for
_SIZES = range(2**63)  # what a file system can count
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Stamp = tuple[int, int, int]
"""Size in bytes, time of the last change in nanoseconds, inode."""

_SAVE_AGAIN = "save it as BF16 or F32"

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
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
        if self.dtype not in _TORCH:
            raise refusal(Path(self.shard), f"cannot read tensor {quoted(self.name)}, {self.dtype}", _SAVE_AGAIN)
        return _TORCH[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose headers and index have been checked."""

    folder: Path
    entries: Mapping[str, TensorEntry]
    """Name on disk to entry."""
    shards: tuple[str, ...]
    """Files that hold tensors, sorted, relative to the folder."""
    config: Mapping[str, Any] = field(repr=False)
    """`config.json`, parsed."""
    stamps: Mapping[str, Stamp] = field(repr=False)
    """Shards, index and config, relative to the folder, each as it was when its header was read."""

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read `config.json`, the index and the headers. No file outside the folder is opened (see `inside`).

        All that is accepted, the safetensors library accepts. It accepts more, of what no writer writes: a name that
        occurs twice, a tensor's entry with other keys or as a list, `"__metadata__": null`, more than 64 dimensions,
        empty tensors that torch cannot make, as [0, 2**62, 4].

        Raises `InputError` where this is not a whole and plain checkpoint: something is missing, an adapter,
        pickled or quantized weights, a file outside the folder, a damaged file, an index that disagrees.
        """
        if not os.access(folder, os.R_OK | os.X_OK) or not folder.is_dir():
            raise refusal(folder, "no such folder, or none you may read", "give the local folder of a checkpoint")
        if os.path.lexists(folder / "adapter_config.json"):
            raise refusal(folder, "an adapter lies here", "merge it into its model first (peft: merge_and_unload)")
        stamps: dict[str, Stamp] = {}
        config = _read_config(folder, stamps)
        shards, weight_map = _find_shards(folder, stamps)
        entries = _read_shards(folder, shards, stamps)
        if weight_map is not None:
            _compare_with_index(folder, weight_map, entries)
        return cls(folder, entries, shards, config, stamps)

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name` in its stored shape and dtype, on the CPU, writable. Only its bytes are read.

        Raises `InputError` for a name that is not there, a dtype that torch lacks, and a file that has become shorter.
        """
        if name not in self.entries:
            raise refusal(self.folder, f"no tensor {quoted(name)} in this checkpoint", "give a name that it holds")
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.torch_dtype)
        raw = tensor.reshape(-1).view(torch.uint8).numpy().data
        with opened(self.folder, entry.shard) as file:
            file.seek(entry.begin)
            if file.readinto(raw) != entry.end - entry.begin:
                raise _damaged(self.folder / entry.shard, f"it ends inside tensor {quoted(name)}")
        return tensor

    def check_unchanged(self) -> None:
        """Raise `RunError` if the config, the index or a shard is not the file that was opened.

        A run takes offsets from headers first, reads values minutes later and copies the files last. Where somebody
        saves or fetches the checkpoint again in between, it would take one file's offsets into another, and write a
        mixture of both. So a run calls this before it relies on what it has read. Sizes, times and inodes are compared,
        not bytes: who writes in place and then sets the time back goes unseen.
        """
        for name, stamp in self.stamps.items():
            path = self.folder / name
            try:
                same = _stamp(path.stat()) == stamp
            except OSError:  # removed, or no longer ours to look at
                same = False
            if not same:
                raise RunError(f"{printable(str(path))}: changed while it was read; try again")


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _stamped(file: BinaryIO, name: str, stamps: dict[str, Stamp]) -> int:
    """Note the stamp of an open file, and return its size."""
    stamps[name] = _stamp(os.fstat(file.fileno()))
    return stamps[name][0]


def _read_config(folder: Path, stamps: dict[str, Stamp]) -> Mapping[str, Any]:
    if not os.path.lexists(folder / CONFIG):
        raise refusal(folder, f"no {CONFIG}", "give the folder that holds it beside the weights")
    config = _read_json(folder, CONFIG, stamps)
    sections: list[Any] = [config]  # a vision-language model keeps its parts' settings below its own
    while sections:
        section = sections.pop()
        if isinstance(section, dict):
            if section.get("quantization_config"):
                mend = "edit the unquantised checkpoint, then quantize again"
                raise refusal(folder / CONFIG, "the weights are quantized", mend)
            sections.extend(section.values())
    return config


def _find_shards(folder: Path, stamps: dict[str, Stamp]) -> tuple[tuple[str, ...], Mapping[str, str] | None]:
    """The shards, and which tensor the index has in which: None without an index."""
    found = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    if os.path.lexists(folder / INDEX):
        weight_map = _read_index(folder, stamps)
        shards = tuple(sorted(set(weight_map.values())))
        if SINGLE in found and SINGLE not in shards:
            # transformers would load the single file, other programs the shards.
            raise refusal(folder, f"holds both {SINGLE} and {INDEX}, which does not name it", "remove one of them")
        return shards, weight_map
    if found == [SINGLE]:
        return (SINGLE,), None
    if found:
        others = " and others" if len(found) > 1 else ""
        raise refusal(folder, f"{quoted(found[0])}{others} without {INDEX}", f"fetch the index, or keep one {SINGLE}")
    if any(any(folder.glob(pattern)) for pattern in ("pytorch_model*.bin", "*.pt", "*.pth")):
        raise refusal(folder, "a pickle checkpoint", "convert to safetensors (save_pretrained writes them)")
    raise refusal(folder, f"no {SINGLE} and no {INDEX}", "give the folder that holds the weights")


def _read_index(folder: Path, stamps: dict[str, Stamp]) -> Mapping[str, str]:
    weight_map = _read_json(folder, INDEX, stamps).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise _damaged(folder / INDEX, "'weight_map' does not give each tensor a file name")
    return weight_map


def _read_shards(folder: Path, shards: Iterable[str], stamps: dict[str, Stamp]) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    names: dict[Stamp, str] = {}
    for shard in shards:
        found = _read_header(folder, shard, stamps)
        other = names.setdefault(stamps[shard], shard)
        if other != shard:  # with links, an index could name one file a million times
            raise refusal(folder, f"{quoted(other)} and {quoted(shard)} are one file", "remove one of them")
        for entry in found:
            if entry.name in entries:
                places = f"{quoted(entries[entry.name].shard)} and in {quoted(shard)}"
                raise refusal(folder, f"tensor {quoted(entry.name)} is in {places}", "remove one of them")
            entries[entry.name] = entry
    return entries


def _read_header(folder: Path, shard: str, stamps: dict[str, Stamp]) -> list[TensorEntry]:
    """The entries of a shard in the order of their bytes, which have no gap and reach the end of the file."""
    path = folder / shard
    with opened(folder, shard) as file:
        size = _stamped(file, shard, stamps)
        length = int.from_bytes(file.read(_LENGTH_FIELD), "little")
        if length > _LONGEST_HEADER:
            raise _damaged(path, f"its header claims {length:,} bytes, more than {_LONGEST_HEADER:,}")
        start = _LENGTH_FIELD + length
        if size < start:
            raise _damaged(path, f"its header should end at byte {start:,}, and the file at {size:,}")
        text = file.read(length)
    header = _parse_object(path, text, parse_int=_parse_size)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "'__metadata__' is not a table of strings")
    entries = [_entry(path, shard, start, name, spec) for name, spec in header.items()]
    _check_order(path, entries, start, size)
    return entries


def _check_order(path: Path, entries: list[TensorEntry], start: int, size: int) -> None:
    """Sorts the entries by their bytes."""
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    expected = start
    for entry in entries:
        if entry.begin != expected:
            raise _damaged(path, f"tensor {quoted(entry.name)} begins at byte {entry.begin:,}, not at {expected:,}")
        expected = entry.end
    if expected != size:
        raise _damaged(path, f"its tensors end at byte {expected:,}, and the file at {size:,}")


def _entry(path: Path, shard: str, start: int, name: str, spec: object) -> TensorEntry:
    match spec:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end], **others} if not others:
            pass
        case _:
            raise _damaged(path, f"tensor {quoted(name)} has no dtype, shape and two data_offsets, or more than these")
    if dtype not in _BITS:
        raise refusal(path, f"tensor {quoted(name)} has the unknown dtype {quoted(dtype)}", _SAVE_AGAIN)
    if len(shape) > _MOST_DIMENSIONS or not _are_sizes([*shape, begin, end]):
        raise _damaged(path, f"tensor {quoted(name)} has a shape or offsets that are no sizes")
    count = _count(shape)
    if count is None or count * _BITS[dtype] != (end - begin) * 8:
        raise _damaged(path, f"tensor {quoted(name)}, {dtype} {shape}, does not fit its {end - begin:,} bytes")
    return TensorEntry(name, shard, dtype, tuple(shape), start + begin, start + end)


def _parse_size(digits: str) -> int | None:
    """A whole number as the safetensors library reads sizes: to it, -0 is none. None, for what can be no size."""
    return int(digits) if digits.isdecimal() and len(digits) <= len(str(_SIZES.stop)) else None


def _are_sizes(values: Iterable[object]) -> bool:
    """Whether each value is an integer that could be a size; True and False, ints to Python, are not."""
    return all(type(value) is int and value in _SIZES for value in values)


def _count(shape: Iterable[int]) -> int | None:
    """How many values a shape holds; None once that is no size.

    Like torch, which has to find strides, it takes zeros for ones until the end: [0, 2**62, 4] is refused.
    """
    count, empty = 1, False
    for size in shape:
        count *= size or 1
        empty = empty or not size
        if count not in _SIZES:
            return None
    return 0 if empty else count


def _compare_with_index(folder: Path, weight_map: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> None:
    found = {name: entry.shard for name, entry in entries.items()}
    if weight_map == found:
        return
    name = min(name for name in weight_map.keys() | found.keys() if weight_map.get(name) != found.get(name))
    told, there = (quoted(places[name]) if name in places else "no shard" for places in (weight_map, found))
    raise refusal(
        folder, f"the index has tensor {quoted(name)} in {told}, the headers in {there}", "fetch the checkpoint again"
    )


def _read_json(folder: Path, name: str, stamps: dict[str, Stamp]) -> dict[str, Any]:
    path = folder / name
    with opened(folder, name) as file:
        size = _stamped(file, name, stamps)
        if size > _LONGEST_JSON:
            raise _damaged(path, f"it has {size:,} bytes, more than {_LONGEST_JSON:,}")
        text = file.read(size)
    return _parse_object(path, text)


def _parse_object(path: Path, text: bytes, parse_int: Callable[[str], int | None] | None = None) -> dict[str, Any]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique, parse_int=parse_int)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair is no letter: such a name is no text
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a name that occurs twice
        raise _damaged(path, f"no JSON where there should be ({printable(str(error))})") from error
    if not isinstance(value, dict):
        raise _damaged(path, "no JSON object where there should be")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _damaged(path: Path, what: str) -> InputError:
    return refusal(path, what, "the file is damaged, fetch or save it again")
