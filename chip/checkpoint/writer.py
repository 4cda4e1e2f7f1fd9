"""A copy of a checkpoint folder with new values in some tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from chip.checkpoint.contents import folder_contents
from chip.checkpoint.folder import atomic_directory, copy_file, drop_page_cache, flush, link_file
from chip.checkpoint.header import FLOATS, TensorEntry
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.output import check_output, check_space
from chip.checkpoint.read_back import ReadBack, read_back
from chip.checkpoint.threads import in_threads
from chip.errors import InputError, RunError
from chip.progress import ProgressCallback, silent

_VALUES = 1 << 22  # values that are rounded, written or compared at once
_CACHED = 1 << 15  # values whose steps of rounding stay in the cache of a core


def write_patched(
    source: Checkpoint,
    out: Path,
    tensors: Mapping[str, Tensor],
    *,
    overwrite: bool = False,
    link_unchanged: bool = False,
) -> ReadBack:
    """Write `out`: the folder of `source`, as far as it is copied, byte for byte but for the values of `tensors`.

    Does and raises what `check_output`, `atomic_directory`, `copy_patched`, `check_written` and `read_back` do, one
    after the other.
    """
    check_output(source, out, overwrite=overwrite, link_unchanged=link_unchanged)
    with atomic_directory(out, overwrite) as folder:
        copy_patched(source, folder, tensors, link_unchanged=link_unchanged)
        check_written(source, folder, tensors)
        return read_back(source, folder, tensors.keys() | source.merged.keys())


def copy_patched(
    source: Checkpoint,
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    link_unchanged: bool = False,
    progress: ProgressCallback = silent,
) -> None:
    """Make `folder`: what `folder_contents` has of `source`, with the values of `tensors`. Flushed, but not read back.

    Where an adapter is merged into `source`, what it changes and `tensors` does not is written merged.

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
        OSError: what the file system refuses, which `atomic_directory` puts into one line.
    """
    for name, tensor in _all_values(source, tensors):
        _check_tensor(source, name, tensor)
    changed = {source.entries[name].shard for name in (*tensors, *source.merged)}
    linked = set(source.shards) - changed if link_unchanged else set()
    files = [(path, relative, str(relative) in linked) for path, relative in folder_contents(source).copied]
    folder.mkdir()
    check_space([path for path, _, link in files if not link], folder)
    jobs = [(link_file if link else copy_file, path, folder / relative) for path, relative, link in files]
    with progress("writing", len(jobs)) as advance, in_threads(lambda make, *paths: make(*paths), jobs) as done:
        for _ in done:
            advance(1)
    for name, tensor in _all_values(source, tensors):
        _write(folder / source.entries[name].shard, source.entries[name], tensor)
    flush(folder)
    source.check_unchanged()


def check_written(source: Checkpoint, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare the tensors in `folder` with what they were meant to become; from the disk, where one can.

    Raises:
        RunError: they are something else, or lie elsewhere.
    """
    drop_page_cache({folder / source.entries[name].shard for name in (*tensors, *source.merged)})
    for name, tensor in _all_values(source, tensors):
        entry = source.entries[name]
        with (folder / entry.shard).open("rb") as file:
            file.seek(entry.begin)
            for block in _bytes(entry, tensor):
                if file.read(len(block)) != block:
                    raise RunError(f"tensor {name!r}: reading back gives other bytes than were written; check the disk")


def round_once(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in a floating-point `dtype`, every value rounded to the nearest, ties to even.

    torch goes from float64 to 16 bits by way of float32, which rounds twice, and now and then to the wrong
    side. Here the step to float32 rounds to odd, which the second rounding cannot tell from the exact value
    (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to
    odd", 2008).
    """
    if tensor.dtype != torch.float64 or dtype not in (torch.bfloat16, torch.float16) or not tensor.numel():
        return tensor.to(dtype)
    if not tensor.dim():
        return _to_odd(tensor).to(dtype)
    result = torch.empty_like(tensor, dtype=dtype)
    block = torch.get_num_threads() * _CACHED if tensor.device.type == "cpu" else _VALUES
    rows = max(1, block * len(tensor) // tensor.numel())
    for rounded, exact in zip(torch.split(result, rows), torch.split(tensor, rows), strict=True):
        rounded.copy_(_to_odd(exact))
    return result


def _to_odd(tensor: Tensor) -> Tensor:
    """fp64 to fp32, rounded to the neighbor with an odd last bit where it lies between two."""
    single = tensor.to(torch.float32)
    error = single.to(torch.float64).abs() - tensor.abs()
    bits = single.view(torch.int32)
    bits = bits - (error > 0).to(torch.int32)  # sign and magnitude: one less is one step towards zero
    bits = bits | (error != 0).to(torch.int32)
    return torch.where(tensor.isfinite(), bits.view(torch.float32), single)


def _all_values(source: Checkpoint, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """`tensors`, and what an adapter makes of others: one at a time."""
    yield from tensors.items()
    yield from ((name, source.read(name)) for name in source.merged if name not in tensors)


def _check_tensor(source: Checkpoint, name: str, tensor: Tensor) -> None:
    if name not in source.entries:
        raise RunError(f"{source.folder}: there is no tensor {name!r} to change")
    entry = source.entries[name]
    if entry.dtype not in FLOATS:
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


def _write(path: Path, entry: TensorEntry, tensor: Tensor) -> None:
    with path.open("r+b") as file:
        if os.fstat(file.fileno()).st_nlink != 1:
            raise RunError(f"{path}: has a second name, and will not be written to")
        file.seek(entry.begin)
        for block in _bytes(entry, tensor):
            file.write(block)
