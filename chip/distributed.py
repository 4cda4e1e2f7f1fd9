"""Several processes that share one edit: each runs its part of the records, and the sums go to all.

`torchrun --nproc-per-node N -m chip edit ...` starts them; the first one, the leader, alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from chip.errors import RunError

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
"""How long processes wait for each other: a pass, or writing a large checkpoint. One that dies is noticed at once."""


class DistributedContext:
    """One process, alone. Each method is what several of them would need to do together."""

    rank = 0
    count = 1

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share, spread evenly: neighbors are alike and cost alike."""
        return items[self.rank :: self.count]

    def all_reduce_(self, *tensors: Tensor) -> None:
        """Add up, in place, what all processes have."""

    def union(self, keys: Tensor) -> Tensor:
        """All keys (k,) int64 that any process has, ascending."""
        return _unique(keys)

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """The leader's values, in place."""
        return tensor

    def broadcast_object(self, value: T) -> T:
        """What the leader says."""
        return value

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.broadcast_object(None)


class _Several(DistributedContext):
    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    def all_reduce_(self, *tensors: Tensor) -> None:
        with _together():
            for tensor in tensors:
                dist.all_reduce(tensor)

    def union(self, keys: Tensor) -> Tensor:
        with _together():
            everyone: list[Tensor] = [keys] * self.count
            dist.all_gather_object(everyone, keys.cpu())
        return _unique(torch.cat(everyone)).to(keys.device)

    def broadcast_(self, tensor: Tensor) -> Tensor:
        with _together():
            dist.broadcast(tensor, 0)
        return tensor

    def broadcast_object(self, value: T) -> T:
        with _together():
            said = [value]
            dist.broadcast_object_list(said, 0)
        return said[0]


def _unique(keys: Tensor) -> Tensor:
    ascending: Tensor = torch.unique(keys)
    return ascending


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.distributed has one error for all: a peer is gone, or the network is
        raise RunError("another process of this run has stopped; nothing was written") from error


@contextmanager
def distributed_context() -> Iterator[DistributedContext]:
    """The processes that torchrun has started with this one; this one alone, where it has not."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield DistributedContext()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield _Several()
    finally:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """The device of this kind that is this process's own."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device


def is_main_process() -> bool:
    """Whether this process speaks for all that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"
