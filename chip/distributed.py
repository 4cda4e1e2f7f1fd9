"""Several processes that share one edit: each runs its part of the records, and the sums go to all.

`torchrun --nproc-per-node N -m chip edit ...` starts them; only the main process, of rank 0, writes. Each of them gives
a sign of life every second, by the store that they have met at: so one that dies stops the others within ten seconds,
and so does a link that carries nothing any longer, of which no error comes.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from chip.errors import InputError, RunError, foreign_code

T = TypeVar("T")

ARRIVAL = timedelta(minutes=10)
"""How long processes wait for the others to start."""
TIMEOUT = timedelta(hours=12)
"""How long processes wait for each other: a pass, or writing a large checkpoint."""
BEAT = 1.0
"""Seconds between two signs of life."""
SILENCE = 7.0
"""Seconds without one after which a process counts as dead."""

_START = "let torchrun start the processes, or unset RANK and WORLD_SIZE"
_DIGITS = 9
_GONE = "another process of this run has stopped; nothing was written"
_LEFT = b"left"
_COLLECTIVE = "chip-collective"
"""The name of the threads that wait for other processes."""


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

    def __init__(self, heartbeat: _Heartbeat) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._call = heartbeat.call

    def all_reduce_(self, *tensors: Tensor) -> None:
        self._call(lambda: [dist.all_reduce(tensor) for tensor in tensors])

    def union(self, keys: Tensor) -> Tensor:
        gathered: list[Tensor] = [keys] * self.world_size
        self._call(lambda: dist.all_gather_object(gathered, keys.cpu()))
        return _unique(torch.cat(gathered)).to(keys.device)

    def broadcast_(self, tensor: Tensor) -> Tensor:
        self._call(lambda: dist.broadcast(tensor, 0))
        return tensor

    def broadcast_object(self, value: T) -> T:
        objects = [value]
        self._call(lambda: dist.broadcast_object_list(objects, 0))
        return objects[0]

    def barrier(self) -> None:
        self.all_reduce_(torch.zeros(1))  # on the CPU: dist.barrier() would choose a GPU by itself, not always ours


def _unique(keys: Tensor) -> Tensor:
    ascending: Tensor = torch.unique(keys)
    return ascending


class _Heartbeat:
    """Signs of life of all processes, by counters in the store, which each looks at while it computes and waits.

    Gloo waits for a peer that is silent as long as for one that computes, and cannot be interrupted; so what may wait
    for others runs in a thread that can be left behind.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        """Waits until all processes are there, and raises what torch does where they are not.

        Args:
            store: of torch.distributed.
        """
        self._store, self._own = store, f"chip/alive/{rank}"
        self._heard = {f"chip/alive/{peer}": (b"", 0.0) for peer in range(world_size) if peer != rank}
        self._stopped, self.peer_is_gone = threading.Event(), False
        self._interruptible: int | None = None
        """The thread that computes, while a signal may end what it does."""
        store.set(self._own, "0")
        store.wait([*self._heard], ARRIVAL)
        store.set_timeout(timedelta(seconds=SILENCE))
        self._note([b""] * len(self._heard))
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._beat, self._watch)]
        for thread in self._threads:
            thread.start()

    def _note(self, values: Sequence[bytes]) -> None:
        now = time.monotonic()
        for (peer, (before, _)), value in zip([*self._heard.items()], values, strict=True):
            if value != before or not value:
                self._heard[peer] = value, now
            if value == _LEFT:  # in order, or with an error of its own, which is told there
                del self._heard[peer]

    def _beat(self) -> None:
        try:
            for count in itertools.count(1):
                if self._stopped.wait(BEAT):
                    break
                self._store.set(self._own, str(count))
                if self._heard:
                    self._note(self._store.multi_get([*self._heard]))
            self._store.set(self._own, _LEFT.decode())
        except RuntimeError:  # of torch: the store does not answer, so that all others fall silent
            pass

    def _watch(self) -> None:
        while not self._stopped.wait(BEAT / 4):
            if any(time.monotonic() - heard > SILENCE for _, heard in [*self._heard.values()]):
                self.peer_is_gone = True
                if self._interruptible is not None:
                    signal.pthread_kill(self._interruptible, signal.SIGUSR1)
                return

    def call(self, collective: Callable[[], object]) -> None:
        """Do what waits for the other processes.

        Raises:
            RunError: another process has stopped.
        """
        done, failed = threading.Event(), list[BaseException]()

        def run() -> None:
            try:
                collective()
            except BaseException as error:  # noqa: BLE001 - of another thread: raised in that of the caller
                failed.append(error)
            done.set()

        threading.Thread(target=run, name=_COLLECTIVE, daemon=True).start()
        while not done.wait(BEAT):
            if self.peer_is_gone:
                raise RunError(_GONE)
        if failed and isinstance(failed[0], RuntimeError):
            # torch.distributed has one error for all: a peer is gone, or the network is
            raise RunError(_GONE) from failed[0]
        if failed:
            raise failed[0]

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Whatever the main thread computes in the block ends with a `RunError` where another process dies."""
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_kill"):
            yield  # no signal can be caught: it ends the next time that it waits for the others
            return
        before = signal.signal(signal.SIGUSR1, _raise_gone)
        self._interruptible = threading.get_ident()
        try:
            yield
        finally:
            self._interruptible = None
            signal.signal(signal.SIGUSR1, before)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(SILENCE)


def _raise_gone(*_: object) -> None:
    raise RunError(_GONE)


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
        heartbeat = _Heartbeat(store.clone(), rank, world_size)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        heartbeat.call(lambda: dist.init_process_group(backend, None, TIMEOUT, world_size, rank, store))
    try:
        with heartbeat.interrupting():
            yield _ProcessGroup(heartbeat)
    finally:
        if not heartbeat.peer_is_gone:  # else what waits for it cannot be ended, but by the process
            heartbeat.stop()
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


def exit_process(code: int | str | None = 0) -> NoReturn:
    """End this process as `sys.exit` does; at once, where a thread was left that waits for a process that is gone.

    Gloo raises there as soon as the connection breaks, which may be while the interpreter ends: it aborts then.
    """
    if isinstance(code, int) and any(thread.name == _COLLECTIVE for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes, before and after `distributed_context` too."""
    return os.environ.get("RANK", "0") == "0"
