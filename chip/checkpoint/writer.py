"""A copy of a checkpoint folder with new values in some tensors, and the proof that nothing else is different."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chip.checkpoint.folder import (
    can_share_blocks,
    copy_file,
    files_in,
    flush,
    forget_cached,
    link_file,
    staged,
)
from chip.checkpoint.hashing import Range, digest_all
from chip.checkpoint.layout import CONFIG, Checkpoint, TensorEntry
from chip.checkpoint.threads import in_threads
from chip.errors import InputError, RunError
from chip.progress import ProgressCallback, silent

_EDITABLE = ("F64", "F32", "F16", "BF16")
_OTHER_WEIGHTS = (
    *("*.safetensors", "*.gguf", "pytorch_model*.bin", "consolidated*.pth", "*_model_states.pt"),
    *("optimizer*.pt", "optimizer*.bin", "*_optim_states.pt", "*.distcp"),  # a training's state knows it too
)
_VALUES = 1 << 22  # values that are rounded, written or compared at once


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """One file of a written folder. Hashes are SHA-256 in hexadecimal."""

    bytes: int
    sha256: str
    source_sha256: str | None
    """Of the file of that name in the source; None where the source has none."""


@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """One changed tensor. Hashes are SHA-256 of its bytes, in hexadecimal."""

    before: str
    after: str


@dataclass(frozen=True)
class ReadBack:
    """What was found on the disk after writing. That it exists means that everything was as it should be."""

    files: Mapping[str, WrittenFile]
    """Path relative to the folder -> file."""
    tensors: Mapping[str, WrittenTensor]
    """Name on disk -> tensor, for those that were meant to change."""
    untouched_bytes: int
    """All others, which are the source's by their hash."""


def check_output(source: Checkpoint, output: Path, *, overwrite: bool = False, link_unchanged: bool = False) -> None:
    """Raise `InputError` where writing to `output` would fail, before anything long is computed.

    Refused: an output that is, or holds, or is held by the source; that is a file; that is not empty (with
    `overwrite`: that is no checkpoint); that cannot be made; for which there is no space; that links cannot reach.
    And a source with weights or a training's state that are in no shard, since a copy of them would keep what an edit
    takes away.
    """
    origin, target = source.folder.resolve(), output.resolve()
    if origin.is_relative_to(target) or target.is_relative_to(origin):
        raise InputError(f"{output}: overlaps the source {source.folder}; choose a folder beside it")
    if target.exists() and not target.is_dir():
        raise InputError(f"{output}: is a file; choose a folder that is empty or does not exist")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise InputError(f"{output}: is not empty; choose another folder, or overwrite it")
        if not (target / CONFIG).is_file():
            raise InputError(f"{output}: is no checkpoint, and will not be overwritten; choose another folder")
    standing = next(parent for parent in target.parents if parent.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
        raise InputError(f"{output}: cannot be made, {standing} is not a folder one can write to; choose another")
    files = list(files_in(origin))
    shards = {Path(shard) for shard in source.shards}
    if hidden := shards - {relative for _, relative in files}:
        raise InputError(f"{origin}: {min(hidden)} is in a folder that is not copied; move the shard out of it")
    for path, relative in files:
        if relative not in shards and any(relative.match(pattern) for pattern in _OTHER_WEIGHTS):
            raise InputError(f"{path}: holds weights an edit would not reach; move it elsewhere")
    _check_space([path for path, relative in files if not (link_unchanged and relative in shards)], standing)
    if link_unchanged and any((origin / shard).stat().st_dev != standing.stat().st_dev for shard in source.shards):
        raise InputError(f"{output}: on another disk than {source.folder}, links cannot reach; drop --link-unchanged")


def write_patched(
    source: Checkpoint,
    output: Path,
    tensors: Mapping[str, Tensor],
    *,
    overwrite: bool = False,
    link_unchanged: bool = False,
) -> ReadBack:
    """Write `output`: the folder of `source`, byte for byte, but for the values of `tensors`.

    What `check_output`, `staged`, `copy_patched`, `check_written` and `read_back` do and raise, one after the other.
    """
    check_output(source, output, overwrite=overwrite, link_unchanged=link_unchanged)
    with staged(output, overwrite) as folder:
        copy_patched(source, folder, tensors, link_unchanged=link_unchanged)
        check_written(source, folder, tensors)
        return read_back(source, folder, tensors.keys())


def copy_patched(
    source: Checkpoint,
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    link_unchanged: bool = False,
    progress: ProgressCallback = silent,
) -> None:
    """Make `folder`: the folder of `source`, with the values of `tensors`. Flushed, but not read back.

    Memory does not grow with the size of the checkpoint: a few blocks beside what `tensors` holds.

    Args:
        tensors: name on disk -> tensor of the stored shape, of any floating-point dtype and on any device; each value
            is rounded once, to the nearest that the stored dtype has.
        link_unchanged: shards without a changed tensor become second names of the source's files. All other files,
            links included, become files of their own.

    Raises:
        InputError: a stored dtype other than F64, F32, F16 and BF16.
        RunError: a tensor that the source lacks, of another shape, not floating-point, or not finite once rounded; a
            source that changed since it was opened.
        OSError: what the file system refuses, which `staged` puts into one line.
    """
    for name, tensor in tensors.items():
        _check_tensor(source, name, tensor)
    changed = {source.entries[name].shard for name in tensors}
    linked = set(source.shards) - changed if link_unchanged else set()
    files = [(path, relative, str(relative) in linked) for path, relative in files_in(source.folder)]
    folder.mkdir()
    _check_space([path for path, _, link in files if not link], folder)
    jobs = [(link_file if link else copy_file, path, folder / relative) for path, relative, link in files]
    with progress("writing", len(jobs)) as advance, in_threads(lambda way, *paths: way(*paths), jobs) as copied:
        for _ in copied:
            advance(1)
    for name, tensor in tensors.items():
        _write(folder / source.entries[name].shard, source.entries[name], tensor)
    flush(folder)
    source.check_unchanged()


def check_written(source: Checkpoint, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare the tensors in `folder` with what they were meant to become; from the disk, where one can.

    Raises:
        RunError: they are something else, or lie elsewhere.
    """
    forget_cached({folder / source.entries[name].shard for name in tensors})
    for name, tensor in tensors.items():
        entry = source.entries[name]
        with (folder / entry.shard).open("rb") as file:
            file.seek(entry.begin)
            for block in _bytes(entry, tensor):
                if file.read(len(block)) != block:
                    raise RunError(f"tensor {name!r}: reading back gives other bytes than were written; check the disk")


def read_back(
    source: Checkpoint,
    folder: Path,
    changed: Collection[str],
    own: Collection[str] = (),
    *,
    progress: ProgressCallback = silent,
) -> ReadBack:
    """Hash the written folder, and compare it with the source outside of the tensors that were meant to change.

    Args:
        changed: names on disk of those tensors.
        own: files that chip has written itself, relative to the folder: hashed, and not compared.

    Raises:
        RunError: a byte is not the source's, or the source has changed since it was opened.
    """
    _check_layout(source, folder)
    written = dict(_relative(folder))
    forget_cached(written.values())
    originals = {name: path for name, path in _relative(source.folder) if name in written or name not in own}
    if missing := originals.keys() - written.keys() | (written.keys() - originals.keys() - set(own)):
        raise RunError(
            f"{min(missing)}: only in the source, or only in its copy; the source changed meanwhile, try again"
        )
    ranges = changed_ranges(source, changed)
    wanted = {name: list(ranges.get(name, {}).values()) for name in written}
    names = [*written, *originals]
    paths = [*written.values(), *originals.values()]
    with progress("reading back", len(names)) as advance:
        digests = digest_all([(path, wanted[name]) for name, path in zip(names, paths, strict=True)], advance)
    of_copy = dict(zip(written, digests, strict=False))
    of_original = dict(zip(originals, digests[len(written) :], strict=True))
    for name in of_original.keys() - set(own):
        if (of_copy[name].bytes, of_copy[name].outside) != (of_original[name].bytes, of_original[name].outside):
            raise RunError(f"{name}: the copy has other bytes than the source; check the disk")
    source.check_unchanged()
    tensors = {
        tensor: WrittenTensor(before, after)
        for shard, inside in ranges.items()
        for tensor, before, after in zip(inside, of_original[shard].inside, of_copy[shard].inside, strict=True)
    }
    files = {
        name: WrittenFile(copy.bytes, copy.whole, of_original[name].whole if name in of_original else None)
        for name, copy in of_copy.items()
    }
    meant = sum(end - begin for inside in ranges.values() for begin, end in inside.values())
    compared = sum(of_copy[name].bytes for name in of_original.keys() - set(own))
    return ReadBack(files, tensors, compared - meant)


def changed_ranges(checkpoint: Checkpoint, names: Collection[str]) -> dict[str, dict[str, Range]]:
    """Shard -> name on disk -> first byte and the byte after the last, in the order of bytes."""
    ranges: dict[str, dict[str, Range]] = {}
    for entry in sorted((checkpoint.entries[name] for name in names), key=lambda entry: entry.begin):
        ranges.setdefault(entry.shard, {})[entry.name] = (entry.begin, entry.end)
    return ranges


def round_once(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in a floating-point `dtype`, every value rounded to the nearest, ties to even.

    torch goes from float64 to 16 bits by way of float32, which rounds twice, and now and then to the wrong
    side. Here the step to float32 rounds to odd, which the second rounding cannot tell from the exact value
    (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to
    odd", 2008).
    """
    if tensor.dtype != torch.float64 or dtype not in (torch.bfloat16, torch.float16):
        return tensor.to(dtype)
    single = tensor.to(torch.float32)
    error = single.to(torch.float64).abs() - tensor.abs()
    bits = single.view(torch.int32)
    bits = bits - (error > 0).to(torch.int32)  # sign and magnitude: one less is one step towards zero
    bits = bits | (error != 0).to(torch.int32)
    return torch.where(tensor.isfinite(), bits.view(torch.float32), single).to(dtype)


def _check_tensor(source: Checkpoint, name: str, tensor: Tensor) -> None:
    if name not in source.entries:
        raise RunError(f"{source.folder}: there is no tensor {name!r} to change")
    entry = source.entries[name]
    if entry.dtype not in _EDITABLE:
        raise InputError(f"{source.folder}: cannot edit tensor {name!r}, {entry.dtype}; save it as BF16 or F32")
    if tuple(tensor.shape) != entry.shape:
        raise RunError(f"tensor {name!r}: the new shape {tuple(tensor.shape)} is not the stored {entry.shape}")
    if not tensor.is_floating_point():
        raise RunError(f"tensor {name!r}: the new values are {tensor.dtype}, not floating-point")
    if not all(_is_finite(block) for block in _rounded(entry, tensor)):
        raise RunError(f"tensor {name!r}: NaN or infinite as {entry.dtype}; nothing has been written")


def _is_finite(values: Tensor) -> bool:
    least, most = values.aminmax()  # NaN if one of them is; no memory is needed for it
    return bool(least.isfinite() and most.isfinite())


def _rounded(entry: TensorEntry, tensor: Tensor) -> Iterator[Tensor]:
    """The values to write, in the stored dtype, flat, block by block."""
    if not tensor.numel():
        return
    rows = tensor.detach().reshape(len(tensor) if tensor.dim() else 1, -1)  # a view, even of a transposed tensor
    step = max(1, _VALUES // max(1, rows.shape[1]))
    for begin in range(0, len(rows), step):
        yield round_once(rows[begin : begin + step], entry.torch_dtype).reshape(-1)


def _bytes(entry: TensorEntry, tensor: Tensor) -> Iterator[memoryview]:
    return (block.cpu().view(torch.uint8).numpy().data for block in _rounded(entry, tensor))


def _check_space(files: Sequence[Path], folder: Path) -> None:
    """Refuse before the first byte what would fail with the last one."""
    needed, free = sum(path.stat().st_size for path in files), shutil.disk_usage(folder).free
    if needed > free and not can_share_blocks(files[0], folder):  # sharing takes no space
        raise InputError(f"{folder}: {needed:,} bytes are needed, {free:,} free; free some, or choose another disk")


def _write(path: Path, entry: TensorEntry, tensor: Tensor) -> None:
    with path.open("r+b") as file:
        if os.fstat(file.fileno()).st_nlink != 1:
            raise RunError(f"{path}: has a second name, and will not be written to")
        file.seek(entry.begin)
        for block in _bytes(entry, tensor):
            file.write(block)


def _check_layout(source: Checkpoint, folder: Path) -> None:
    try:
        written = Checkpoint.open(folder)
    except InputError as error:
        raise RunError(f"the copy cannot be read back ({error}); the source may have changed meanwhile") from error
    if written.entries != source.entries:
        raise RunError(f"{source.folder}: changed while it was copied; try again")


def _relative(folder: Path) -> Iterator[tuple[str, Path]]:
    return ((str(relative), path) for path, relative in files_in(folder))
