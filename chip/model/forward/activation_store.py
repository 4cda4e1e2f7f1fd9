"""Where hidden states wait for the next layer: on their device while they fit, else on the host, else in a file."""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

KEPT_FREE = 0.25
"""The share of a memory that is left to everything else: statistics, solves, what a forward pass needs."""

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's limit is written, by the second and by the first version of control groups."""


@dataclass(frozen=True)
class _Stored:
    """A tensor that lies elsewhere than where it is used."""

    tensor: Tensor
    device: torch.device


def put(value: Any, place: str | None = None) -> Any:
    """The value with each tensor where there is room for it. Whatever else it is made of stays as it is.

    Args:
        value: nested tuples, lists and dicts.
        place: `device`, `host` or `file`; by default the first of them that has room.
    """
    return tree_map_only(Tensor, lambda tensor: _put(tensor, place), value)


def take(value: Any) -> Any:
    """What was put, on the device it came from."""
    return tree_map_only(_Stored, lambda stored: stored.tensor.to(stored.device), value)


def has_room(value: Any) -> bool:
    """Whether all tensors of the value may stay where they are."""
    return all(room_for(leaf.nbytes, leaf.device) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def room_for(size: int, device: torch.device) -> bool:
    """Whether so many bytes may be held on the device."""
    return _place(size, device) == "device"


def _put(tensor: Tensor, place: str | None) -> Tensor | _Stored:
    place = place or _place(tensor.nbytes, tensor.device)
    if place == "device":
        return tensor
    if place == "host":
        return _Stored(tensor.cpu(), tensor.device)
    return _Stored(_in_file(tensor.cpu()), tensor.device)


def _place(size: int, device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if free - size > KEPT_FREE * total:
            return "device"
    free, total = _host_memory()
    if free - size > KEPT_FREE * total:
        return "device" if device.type != "cuda" else "host"
    return "file"


def _host_memory() -> tuple[int, int]:
    """Free and total bytes, of the container where there is one."""
    memory = psutil.virtual_memory()
    for limit in _LIMITS:
        if limit.exists() and (text := limit.read_text().strip()).isdigit() and int(text) < memory.total:
            return min(memory.available, int(text) - psutil.Process().memory_info().rss), int(text)
    return memory.available, memory.total


def _in_file(tensor: Tensor) -> Tensor:
    """A copy in memory mapped to a file that has no name: hidden states tell of people, and go with the process."""
    size = tensor.nbytes
    if size == 0:
        return tensor
    with tempfile.TemporaryFile() as file:
        os.truncate(file.fileno(), size)
        mapped = mmap.mmap(file.fileno(), size)
    copy = torch.frombuffer(mapped, dtype=tensor.dtype).reshape(tensor.shape)
    return copy.copy_(tensor)
