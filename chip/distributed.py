"""Several processes that share one edit: each runs its part of the records, and the sums go to all.

`torchrun --nproc-per-node N -m chip edit ...` starts them; only the main process, of rank 0, writes.
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
from torch.distributed.rendezvous import rendezvous

from chip.errors import InputError, RunError, foreign_code

T = TypeVar("T")

ARRIVAL = timedelta(minutes=10)
"""How long processes wait for the others to start."""
TIMEOUT = timedelta(hours=12)
"""How long processes wait for each other: a pass, or writing a large checkpoint. One that dies is noticed at once."""

_START = "let torchrun start the processes, or unset RANK and WORLD_SIZE"
_DIGITS = 9


class DistributedContext:
    """One process on its own: every method does what it does among several, for a world of size one.

    Every process has to call the collective methods (`all_reduce_`, `greatest`, `union`, `broadcast_`,
    `broadcast_object`, `barrier`) in the same order. Among several processes they raise `RunError` when another process
    has stopped.
    """

    rank = 0
    world_size = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Every `world_size`-th item, from `rank` on: neighbors in a sorted list cost alike, so that shares do too."""
        return items[self.rank :: self.world_size]

    def all_reduce_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, in place. Shapes and dtypes agree among them."""

    def union(self, keys: Tensor) -> Tensor:
        """All keys that any process has: (k,) int64, a different k in each, to one (n,) int64, ascending, unique."""
        return _unique(keys)

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Overwrite `tensor` with the main process's values, in place; returns `tensor`."""
        return tensor

    def broadcast_object(self, value: T) -> T:
        """The main process's `value`, which can be pickled; what the others pass is ignored."""
        return value

    def greatest(self, values: Tensor) -> Tensor:
        """The greatest of all processes' values, each by itself; −inf becomes the least number of its dtype."""
        if values.is_floating_point():
            values = values.nan_to_num(neginf=torch.finfo(values.dtype).min)
        of_each = values.new_zeros(self.world_size, *values.shape)
        of_each[self.rank] = values
        self.all_reduce_(of_each)
        return of_each.amax(0)

    def barrier(self) -> None:
        """Wait until all processes have come here."""


class _ProcessGroup(DistributedContext):
    """One of several processes, in the default group of torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def all_reduce_(self, *tensors: Tensor) -> None:
        with _peers_alive():
            for tensor in tensors:
                dist.all_reduce(tensor)

    def union(self, keys: Tensor) -> Tensor:
        with _peers_alive():
            gathered: list[Tensor] = [keys] * self.world_size
            dist.all_gather_object(gathered, keys.cpu())
        return _unique(torch.cat(gathered)).to(keys.device)

    def broadcast_(self, tensor: Tensor) -> Tensor:
        with _peers_alive():
            dist.broadcast(tensor, 0)
        return tensor

    def broadcast_object(self, value: T) -> T:
        with _peers_alive():
            objects = [value]
            dist.broadcast_object_list(objects, 0)
        return objects[0]

    def barrier(self) -> None:
        self.all_reduce_(torch.zeros(1))  # on the CPU: dist.barrier() would choose a GPU by itself, not always ours


def _unique(keys: Tensor) -> Tensor:
    ascending: Tensor = torch.unique(keys)
    return ascending


@contextmanager
def _peers_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.distributed has one error for all: a peer is gone, or the network is
        raise RunError("another process of this run has stopped; nothing was written") from error


@contextmanager
def distributed_context() -> Iterator[DistributedContext]:
    """The processes that torchrun has started with this one; this one alone, where it has not.

    Raises:
        InputError: the environment names no such processes, or they cannot be reached.
    """
    rank, world_size = _environment("RANK", 0), _environment("WORLD_SIZE", 1)
    if not 0 <= rank < world_size:
        raise InputError(f"RANK is {rank} and WORLD_SIZE {world_size} in the environment; {_START}")
    if world_size == 1:
        yield DistributedContext()
        return
    with foreign_code("the other processes of this run", "cannot be reached", _START):
        store, rank, world_size = next(rendezvous("env://", rank, world_size, timeout=ARRIVAL))
        store.set_timeout(TIMEOUT)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        yield _ProcessGroup()
    finally:
        dist.destroy_process_group()


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or len(text) > _DIGITS:
        raise InputError(f"{name} is {text!r} in the environment, and no number; {_START}")
    return int(text)


def local_device(device: str) -> str:
    """`device`, or, for `cuda` under torchrun, the one of this process: `cuda:LOCAL_RANK`."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes, before and after `distributed_context` too."""
    return os.environ.get("RANK", "0") == "0"
