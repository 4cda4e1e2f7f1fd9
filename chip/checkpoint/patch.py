"""A copy of a checkpoint folder with new values in some tensors: whole and checked, or not there at all."""

import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from chip.checkpoint.layout import CONFIG, Checkpoint, TensorEntry
from chip.errors import InputError, RunError

if sys.platform == "linux":
    import fcntl

_EDITABLE = ("F64", "F32", "F16", "BF16")
_NOT_COPIED = frozenset({".git", ".hg", ".svn", ".cache"})  # folders with a history of their own
_OTHER_WEIGHTS = ("*.safetensors", "*.gguf", "pytorch_model*.bin", "consolidated*.pth", "*_model_states.pt")
_FICLONE = 0x40049409  # ioctl of linux/fs.h: share the blocks until one side writes
_BLOCK = 1 << 20


def check_output(source: Checkpoint, output: Path, overwrite: bool = False) -> None:
    """Raise `InputError` where `write_patched` would refuse, before anything long is computed.

    Refused: an output that is, or holds, or is held by the source; that is a file; that is not empty (with
    `overwrite`: that is no checkpoint); that cannot be made. And a source with weights that are in no shard,
    since a copy of them would keep what an edit takes away.
    """
    origin, target = source.folder.resolve(), output.resolve()
    if origin.is_relative_to(target) or target.is_relative_to(origin):
        raise InputError(f"{output}: overlaps the source {source.folder}; choose a folder beside it")
    if target.exists() and not target.is_dir():
        raise InputError(f"{output}: is a file; choose a folder that is empty or does not exist")
    if _is_filled(target):
        if not overwrite:
            raise InputError(f"{output}: is not empty; choose another folder, or overwrite it")
        if not (target / CONFIG).is_file():
            raise InputError(f"{output}: is no checkpoint, and will not be overwritten; choose another folder")
    standing = next(parent for parent in target.parents if parent.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
        raise InputError(f"{output}: cannot be made, {standing} is not a folder one can write to; choose another")
    shards = {Path(shard) for shard in source.shards}
    for _, relative in _files(origin):
        if relative not in shards and any(relative.match(pattern) for pattern in _OTHER_WEIGHTS):
            raise InputError(f"{origin}: {relative} holds weights an edit would not reach; move it elsewhere")


def write_patched(
    source: Checkpoint, output: Path, tensors: Mapping[str, torch.Tensor], *, overwrite: bool = False
) -> None:
    """Write `output`: the folder of `source`, byte for byte, but for the values of `tensors`.

    `tensors` maps names on disk to tensors of the stored shape, of any floating-point dtype and on any
    device; each value is rounded once, to the nearest that the stored dtype has. Links are followed and
    copied as files. The copy is made beside `output`, flushed, read back and renamed: an interrupted run
    leaves no output. With `overwrite` an old checkpoint there is removed after the new one has its place.

    Raises `InputError` as `check_output` does, and for a stored dtype other than F64, F32, F16 and BF16.
    Raises `RunError` for a tensor that the source lacks, that has another shape, that is not floating-point,
    or that is not finite once rounded, and where reading back gives other bytes than were written.
    """
    check_output(source, output, overwrite)
    for name, tensor in tensors.items():
        _check_tensor(source, name, tensor)
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}.chip-{secrets.token_hex(4)}")
    try:
        _copy_folder(source.folder, staging)
        for name, tensor in tensors.items():
            entry = source.entries[name]
            _write(staging / entry.shard, entry, _stored(entry, tensor))
        _flush(staging)
        _read_back(source, staging, tensors)
        _put_in_place(staging, output, overwrite)
    finally:
        if staging.exists():
            shutil.rmtree(staging)


def round_once(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
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


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _check_tensor(source: Checkpoint, name: str, tensor: torch.Tensor) -> None:
    """What can be said of a tensor without looking at its values."""
    if name not in source.entries:
        raise RunError(f"{source.folder}: there is no tensor {name!r} to change")
    entry = source.entries[name]
    if entry.dtype not in _EDITABLE:
        raise InputError(f"{source.folder}: cannot edit tensor {name!r}, {entry.dtype}; save it as BF16 or F32")
    if tuple(tensor.shape) != entry.shape:
        raise RunError(f"tensor {name!r}: the new shape {tuple(tensor.shape)} is not the stored {entry.shape}")
    if not tensor.is_floating_point():
        raise RunError(f"tensor {name!r}: the new values are {tensor.dtype}, not floating-point")


def _stored(entry: TensorEntry, tensor: torch.Tensor) -> torch.Tensor:
    """The bytes to write, as a flat tensor of uint8 on the CPU."""
    values = round_once(tensor.detach(), entry.torch_dtype)
    if not values.isfinite().all():
        raise RunError(f"tensor {entry.name!r}: NaN or infinite as {entry.dtype}; nothing has been written")
    return values.cpu().reshape(-1).view(torch.uint8)


def _files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each regular file under `folder` with its path relative to it; links count as what they lead to."""
    seen: set[Path] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        here = Path(root)
        folders[:] = sorted(set(folders) - _NOT_COPIED)
        if here.resolve() in seen:  # links that lead round in a circle would never end
            raise InputError(f"{here}: links lead to this folder twice; remove one of them")
        seen.add(here.resolve())
        for path in (here / name for name in sorted(files)):
            if not path.exists():
                raise InputError(f"{path}: a link that leads nowhere; fetch the checkpoint again, or remove it")
            if path.is_file():
                yield path, path.relative_to(folder)


def _copy_folder(source: Path, target: Path) -> None:
    """Copy files and folders as new ones, with the modes that the umask gives and the time of now."""
    target.mkdir()
    for path, relative in _files(source):
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as old, copy.open("xb") as new:
            if not (_share_blocks(old, new) or _copy_in_kernel(old, new)):
                shutil.copyfileobj(old, new, _BLOCK)


def _share_blocks(old: BinaryIO, new: BinaryIO) -> bool:
    """Whether the file system could make the copy by reference."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
    except OSError:  # the usual case: only some file systems can
        return False
    return True


def _copy_in_kernel(old: BinaryIO, new: BinaryIO) -> bool:
    """Whether the kernel made the copy, no byte passing through this process. If not, `new` is empty."""
    if sys.platform != "linux":
        return False
    size, done = os.fstat(old.fileno()).st_size, 0
    try:
        while done < size:
            copied = os.copy_file_range(old.fileno(), new.fileno(), size - done, done, done)
            if not copied:
                break
            done += copied
    except OSError:  # across file systems, or where a file system cannot: the plain copy says what is wrong
        pass
    if done < size:
        new.truncate(0)
    return done == size


def _write(path: Path, entry: TensorEntry, stored: torch.Tensor) -> None:
    with path.open("r+b") as file:
        file.seek(entry.begin)
        file.write(stored.numpy().data)


def _flush(folder: Path) -> None:
    """Have the disk hold every file and folder, so that the rename cannot overtake the bytes."""
    for root, _, files in os.walk(folder):
        for path in (*(Path(root, name) for name in files), Path(root)):
            _flush_one(path)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_back(source: Checkpoint, staging: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    try:
        written = Checkpoint.open(staging)
    except InputError as error:
        raise RunError(f"the copy cannot be read back ({error}); the source may have changed meanwhile") from error
    if written.entries != source.entries:
        raise RunError(f"{source.folder}: changed while it was copied; try again")
    for name, tensor in tensors.items():
        if not torch.equal(written.read(name).reshape(-1).view(torch.uint8), _stored(source.entries[name], tensor)):
            raise RunError(f"tensor {name!r}: reading back gives other bytes than were written; check the disk")


def _put_in_place(staging: Path, output: Path, overwrite: bool) -> None:
    """Rename, with an old checkpoint moved aside until the new one has its place."""
    aside = staging.with_name(f"{staging.name}-old")
    if overwrite and _is_filled(output):
        output.replace(aside)
    try:
        staging.replace(output)
    finally:
        if aside.exists() and not output.exists():
            aside.replace(output)
    _flush_one(output.parent)
    if aside.exists():
        shutil.rmtree(aside)
