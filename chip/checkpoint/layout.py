"""Where the tensors of a checkpoint folder lie: headers and index are read, weights only when asked for."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from chip.errors import InputError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_LENGTH_FIELD = 8  # bytes before the header, which hold its length
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors library

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
            raise InputError(f"{self.shard}: cannot read tensor {self.name!r}, {self.dtype}; save it as BF16 or F32")
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

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read `config.json`, the index and the headers.

        Raises `InputError` where this is not a whole and plain checkpoint: something is missing, an adapter,
        pickled or quantised weights, a shard outside the folder, a damaged file, an index that disagrees.
        """
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the local folder of a checkpoint")
        if (folder / "adapter_config.json").exists():
            raise InputError(f"{folder}: an adapter lies here; merge it into its model first (peft: merge_and_unload)")
        config = _read_config(folder)
        shards, weight_map = _find_shards(folder)
        entries: dict[str, TensorEntry] = {}
        for shard in shards:
            for entry in _read_header(_inside(folder, shard), shard):
                if entry.name in entries:
                    other = entries[entry.name].shard
                    raise InputError(
                        f"{folder}: tensor {entry.name!r} is in {other} and in {shard}; remove one of them"
                    )
                entries[entry.name] = entry
        if weight_map is not None:
            _compare_with_index(folder, weight_map, entries)
        return cls(folder, entries, shards, config)

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name` in its stored shape and dtype, on the CPU, writable. Only its bytes are read."""
        if name not in self.entries:
            raise InputError(f"{self.folder}: no tensor {name!r} in this checkpoint")
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.torch_dtype)
        raw = tensor.reshape(-1).view(torch.uint8).numpy().data
        path = self.folder / entry.shard
        with path.open("rb") as file:
            file.seek(entry.begin)
            if file.readinto(raw) != entry.end - entry.begin:
                raise _damaged(path, f"it ends inside tensor {name!r}")
        return tensor


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: no {CONFIG}; give the folder that holds it beside the weights")
    config = _parse_object(path, path.read_bytes())
    for section in (
        config,
        *config.values(),
    ):  # a vision-language model keeps its parts' settings one level down
        if isinstance(section, dict) and section.get("quantization_config"):
            raise InputError(f"{path}: the weights are quantised; edit the unquantised checkpoint, then quantise again")
    return config


def _find_shards(folder: Path) -> tuple[tuple[str, ...], Mapping[str, str] | None]:
    """The shards, and which tensor the index has in which: None without an index."""
    found = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    if (folder / INDEX).exists():
        weight_map = _read_index(folder / INDEX)
        shards = tuple(sorted(set(weight_map.values())))
        if SINGLE in found and SINGLE not in shards:
            # transformers would load the single file, other programs the shards.
            raise InputError(f"{folder}: holds both {SINGLE} and {INDEX}, which does not name it; remove one of them")
        return shards, weight_map
    if found == [SINGLE]:
        return (SINGLE,), None
    if found:
        raise InputError(f"{folder}: {', '.join(found)} without {INDEX}; fetch the index, or keep one {SINGLE}")
    if any(any(folder.glob(pattern)) for pattern in ("pytorch_model*.bin", "*.pt", "*.pth")):
        raise InputError(f"{folder}: a pickle checkpoint; convert to safetensors (save_pretrained writes them)")
    raise InputError(f"{folder}: no {SINGLE} and no {INDEX}; give the folder that holds the weights")


def _read_index(path: Path) -> Mapping[str, str]:
    weight_map = _parse_object(path, path.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise _damaged(path, "'weight_map' does not give each tensor a file name")
    return weight_map


def _inside(folder: Path, shard: str) -> Path:
    """Path of a shard that an index names, which could name any file of the machine."""
    path = folder / shard
    if Path(shard).is_absolute() or ".." in Path(shard).parts:
        raise InputError(f"{folder}: the index names shard {shard!r}, outside the folder; do not trust this checkpoint")
    if not path.is_file():
        raise InputError(f"{folder}: shard {shard!r} is missing; fetch the checkpoint again")
    target = path.resolve()
    # The hub's cache keeps every file of a snapshot as a link into its blobs/.
    if not target.is_relative_to(folder.resolve()) and target.parent.name != "blobs":
        raise InputError(f"{folder}: shard {shard!r} links to {target}, outside the folder; copy the file into it")
    return path


def _read_header(path: Path, shard: str) -> list[TensorEntry]:
    """The entries of a shard in the order of their bytes, which have no gap and reach the end of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_FIELD), "little")
        if length > _LONGEST_HEADER:
            raise _damaged(path, f"its header claims {length:,} bytes, more than {_LONGEST_HEADER:,}")
        start = _LENGTH_FIELD + length
        if size < start:
            raise _damaged(path, f"its header should end at byte {start:,}, and the file at {size:,}")
        header = _parse_object(path, file.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "'__metadata__' is not a table of strings")
    entries = [_entry(path, shard, start, name, spec) for name, spec in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    expected = start
    for entry in entries:
        if entry.begin != expected:
            raise _damaged(path, f"tensor {entry.name!r} begins at byte {entry.begin:,}, not at {expected:,}")
        expected = entry.end
    if expected != size:
        raise _damaged(path, f"its tensors end at byte {expected:,}, and the file at {size:,}")
    return entries


def _entry(path: Path, shard: str, start: int, name: str, spec: object) -> TensorEntry:
    match spec:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
            pass
        case _:
            raise _damaged(path, f"tensor {name!r} lacks its dtype, shape or data_offsets")
    if dtype not in _BITS:
        raise InputError(f"{path}: tensor {name!r} has the unknown dtype {dtype!r}; save it as BF16 or F32")
    if not _are_counts([*shape, begin, end]):
        raise _damaged(path, f"tensor {name!r} has a shape or offsets that are no sizes")
    if math.prod(shape) * _BITS[dtype] != (end - begin) * 8:
        raise _damaged(path, f"tensor {name!r}, {dtype} {shape}, does not fit its {end - begin:,} bytes")
    return TensorEntry(name, shard, dtype, tuple(shape), start + begin, start + end)


def _are_counts(values: Iterable[object]) -> bool:
    """Whether each value is an integer that could be a size; True and False, ints to Python, are not."""
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _compare_with_index(folder: Path, weight_map: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> None:
    for name in weight_map.keys() | entries.keys():
        told, found = weight_map.get(name), entries[name].shard if name in entries else None
        if told != found:
            raise InputError(
                f"{folder}: the index has tensor {name!r} in {told or 'no shard'}, the headers in "
                f"{found or 'none'}; fetch the checkpoint again"
            )


def _parse_object(path: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a name that occurs twice
        raise _damaged(path, f"no JSON where there should be ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(path, "no JSON object where there should be")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: {what}; the file is damaged, fetch or save it again")
