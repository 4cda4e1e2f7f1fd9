"""Where the tensors of a checkpoint folder lie: headers and index are read, weights on demand."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from chip.checkpoint.config_checks import check_config, check_quantization_files, find_scheme
from chip.checkpoint.file_signature import FileSignature
from chip.checkpoint.folder import check_not_half_replaced
from chip.checkpoint.header import TensorEntry, read_header
from chip.checkpoint.json_file import read_json
from chip.checkpoint.paths import damaged_file, hub_name, hub_revision, input_error, open_inside, quoted
from chip.checkpoint.stored_tensor import MergedTensor, StoredTensor
from chip.errors import RunError, printable

if TYPE_CHECKING:  # torch takes a second, and who only compares bytes does without
    import torch

    from chip.checkpoint.adapter import Adapter
    from chip.checkpoint.quantized import Quantized

ADAPTER_CONFIG = "adapter_config.json"
CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Files of torch's distributed checkpoints, as transformers names them."""

Signatures = dict[str, FileSignature]
"""File, relative to the folder -> its signature when it was read."""


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
    signatures: Mapping[str, FileSignature] = field(repr=False)
    """Shards, index and config, relative to the folder, each as it was when it was read."""
    adapter: Adapter | None = None
    """What is merged into the weights; the folder is then its base's."""
    merged: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    """Name on disk -> what the adapter makes of the tensor, for those it changes; computed when it is asked for."""
    quantized: Quantized | None = None
    """What the weights were dequantized from; the folder is then a temporary one."""

    @property
    def given(self) -> Path:
        """The folder of the weights as a user knows it."""
        return self.folder if self.quantized is None else self.quantized.checkpoint.folder

    @property
    def place(self) -> Path:
        """The folder that a user takes for the model's: its adapter's, where it has one. What lies in the Hub's cache,
        where nobody has files, stands for a folder of the repository's name in the current one."""
        folder = self.given if self.adapter is None else self.adapter.folder
        name = hub_name(folder)
        return folder if name is None else Path(PurePath(name).name)

    @property
    def hub(self) -> dict[str, str]:
        """`model`, and `adapter` where one is merged -> `organization/name@commit`, of those from the Hub's cache."""
        folders = {"model": self.given, **({} if self.adapter is None else {"adapter": self.adapter.folder})}
        return {name: found for name, folder in folders.items() if (found := hub_revision(folder)) is not None}

    @classmethod
    def open(cls, folder: Path, *, quantized: bool = False) -> Checkpoint:
        """Read `config.json`, the index and the headers. No file outside the folder is opened (see `resolve_inside`).

        All that is accepted, the safetensors library accepts. It accepts more, of what no writer writes: a name that
        occurs twice, a tensor's entry with other keys or as a list, `"__metadata__": null`, more than 64 dimensions,
        empty tensors that torch cannot make, as [0, 2**62, 4].

        Args:
            quantized: weights that `config.json` says are quantized are no fault. They are codes still: see
                `chip.checkpoint.plain.open_plain`.

        Raises:
            InputError: this is not a whole and plain checkpoint: something is missing, an adapter, pickled or quantized
                weights, a setting that has other weights loaded, a file outside the folder, a damaged file, an index
                that disagrees.
        """
        if not os.access(folder, os.R_OK | os.X_OK) or not folder.is_dir():
            check_not_half_replaced(folder)
            raise input_error(folder, "no such folder, or none you may read", "give the local folder of a checkpoint")
        if os.path.lexists(folder / ADAPTER_CONFIG):
            raise input_error(folder, "an adapter lies here", "give its base, or merge it (peft: merge_and_unload)")
        signatures: Signatures = {}
        config = _read_config(folder, signatures, quantized)
        shards, weight_map = _find_shards(folder, signatures)
        entries = _read_shards(folder, shards, signatures)
        if weight_map is not None:
            _compare_with_index(folder, weight_map, entries)
        return cls(folder, entries, shards, config, signatures)

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name` in its stored shape and dtype, on the CPU, writable. Only its bytes are read.

        Where an adapter changes it, it is the merged one.

        Raises:
            InputError: a name that is not there, a dtype that torch lacks, or a file that has become shorter.
        """
        if name not in self.entries:
            raise input_error(self.folder, f"no tensor {quoted(name)} in this checkpoint", "give a name that it holds")
        return self.merged[name] if name in self.merged else read_tensor(self.folder, self.entries[name])

    def read_rows(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """These rows of a tensor, (len(rows), ...), as `read` gives them. Only their bytes are read, where no adapter
        changes the tensor.

        Raises:
            IndexError: there is no such row.
            InputError: as `read` does.
        """
        import torch

        entry = self.entries[name]
        count, *shape = entry.shape
        if rows and not 0 <= min(rows) <= max(rows) < count:
            raise IndexError(f"{name} has no row {max(rows)}, only {count}")
        if name in self.merged:
            return self.merged[name][list(rows)]
        tensor = torch.empty((len(rows), *shape), dtype=entry.torch_dtype)
        size = (entry.end - entry.begin) // max(1, count)
        buffer = tensor.reshape(-1).view(torch.uint8).numpy().data
        with open_inside(self.folder, entry.shard) as file:
            for place, row in enumerate(rows):
                file.seek(entry.begin + row * size)
                if file.readinto(buffer[place * size : (place + 1) * size]) != size:
                    raise damaged_file(self.folder / entry.shard, f"it ends inside tensor {quoted(name)}")
        return tensor

    def stored(self, name: str) -> StoredTensor:
        """The tensor `name` in its file, no adapter merged. Raises `KeyError` for a name that is not there."""
        entry = self.entries[name]
        return StoredTensor(self.folder / entry.shard, entry)

    def compared(self, name: str) -> StoredTensor:
        """The tensor `name` as `read` gives it, to be read in parts. Raises `KeyError` for a name that is not there."""
        stored = self.stored(name)
        if name not in self.merged:
            return stored
        entry = replace(stored.entry, begin=0, end=stored.entry.end - stored.entry.begin)
        return MergedTensor(stored.path, entry, partial(self.merged.__getitem__, name))

    def check_unchanged(self) -> None:
        """Raise `RunError` if the config, the index or a shard is not the file that was opened.

        A run takes offsets from headers first, reads values minutes later and copies the files last. Where somebody
        saves or fetches the checkpoint again in between, it would take one file's offsets into another, and write a
        mixture of both. So a run calls this before it relies on what it has read. Signatures are compared, not bytes.
        """
        signatures = {self.folder / name: signature for name, signature in self.signatures.items()}
        if self.adapter is not None:
            signatures |= {self.adapter.folder / name: each for name, each in self.adapter.signatures.items()}
        if self.quantized is not None:
            self.quantized.checkpoint.check_unchanged()
        for path, signature in signatures.items():
            try:
                same = FileSignature.of(path.stat()) == signature
            except OSError:  # removed, or no longer ours to look at
                same = False
            if not same:
                raise RunError(f"{printable(str(path))}: changed while it was read; try again")


def read_tensor(folder: Path, entry: TensorEntry) -> torch.Tensor:
    """A tensor of a file in `folder`, in its stored shape and dtype, on the CPU, writable; as `Checkpoint.read`."""
    import torch

    tensor = torch.empty(entry.shape, dtype=entry.torch_dtype)
    buffer = tensor.reshape(-1).view(torch.uint8).numpy().data
    with open_inside(folder, entry.shard) as file:
        file.seek(entry.begin)
        if file.readinto(buffer) != entry.end - entry.begin:
            raise damaged_file(folder / entry.shard, f"it ends inside tensor {quoted(entry.name)}")
    return tensor


def _read_config(folder: Path, signatures: Signatures, quantized: bool) -> Mapping[str, Any]:
    if not os.path.lexists(folder / CONFIG):
        raise input_error(folder, f"no {CONFIG}", "give the folder that holds it beside the weights")
    config, signatures[CONFIG] = read_json(folder, CONFIG)
    check_config(folder / CONFIG, config, quantized=quantized)
    if find_scheme(config) is None:
        check_quantization_files(folder)
    return config


def _find_shards(folder: Path, signatures: Signatures) -> tuple[tuple[str, ...], Mapping[str, str] | None]:
    """The shards, and which tensor the index has in which: None without an index. As transformers chooses them."""
    present = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    if distributed := [name for name in present if _DISTRIBUTED.fullmatch(name)]:
        # transformers would load these, whatever else is there.
        raise input_error(folder, f"{quoted(distributed[0])}: a distributed checkpoint", "save it with save_pretrained")
    if os.path.lexists(folder / INDEX):
        weight_map = _read_index(folder, signatures)
        shards = tuple(sorted(set(weight_map.values())))
        if SINGLE in present and shards != (SINGLE,):
            # transformers would load the single file alone, other programs the shards.
            what = f"holds both {SINGLE} and {INDEX}, which {'names more' if SINGLE in shards else 'does not name it'}"
            raise input_error(folder, what, "remove one of them")
        return shards, weight_map
    if SINGLE in present:
        return (SINGLE,), None
    if present:
        names = f"{quoted(present[0])}{' and others' if len(present) > 1 else ''}"
        raise input_error(folder, f"{names} without {INDEX}", f"fetch the index, or keep one {SINGLE}")
    if any(any(folder.glob(pattern)) for pattern in ("pytorch_model*.bin", "*.pt", "*.pth")):
        raise input_error(folder, "a pickle checkpoint", "convert to safetensors (save_pretrained writes them)")
    raise input_error(folder, f"no {SINGLE} and no {INDEX}", "give the folder that holds the weights")


def _read_index(folder: Path, signatures: Signatures) -> Mapping[str, str]:
    index, signatures[INDEX] = read_json(folder, INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise damaged_file(folder / INDEX, "'weight_map' does not give each tensor a file name")
    return weight_map


def _read_shards(folder: Path, shards: Sequence[str], signatures: Signatures) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    names: dict[FileSignature, str] = {}
    for shard in shards:
        of_shard, signatures[shard] = read_header(folder, shard)
        other = names.setdefault(signatures[shard], shard)
        if other != shard:  # with links, an index could name one file a million times
            raise input_error(folder, f"{quoted(other)} and {quoted(shard)} are one file", "remove one of them")
        for entry in of_shard:
            if entry.name in entries:
                places = f"{quoted(entries[entry.name].shard)} and in {quoted(shard)}"
                raise input_error(folder, f"tensor {quoted(entry.name)} is in {places}", "remove one of them")
            entries[entry.name] = entry
    for shard in shards:
        if not shard.endswith(".safetensors"):  # transformers would take it for a pickle
            raise input_error(folder, f"{quoted(shard)} is no .safetensors file", "rename it, in the index too")
    return entries


def _compare_with_index(folder: Path, weight_map: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> None:
    by_header = {name: entry.shard for name, entry in entries.items()}
    if weight_map == by_header:
        return
    name = min(name for name in weight_map.keys() | by_header.keys() if weight_map.get(name) != by_header.get(name))
    in_index, in_header = (quoted(places[name]) if name in places else "no shard" for places in (weight_map, by_header))
    what = f"the index has tensor {quoted(name)} in {in_index}, the headers in {in_header}"
    raise input_error(folder, what, "fetch the checkpoint again")
