"""Work for several processes, of which each piece may bring more; what has begun is finished first."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from math import inf
from multiprocessing import connection
from pathlib import Path
from threading import Thread
from typing import Any, Self

import torch
import transformers

from chip.cli.console import quiet_libraries


@dataclass(frozen=True)
class Task:
    """A call in another process."""

    rank: int
    """Lower goes first; of equals, the one that came first."""
    call: Callable[[], Any]
    """Can be pickled, as can what it returns."""
    then: Callable[[Any], Sequence[Task]]
    """Takes what was returned, in this process; gives what follows from it."""
    failed: Callable[[BaseException], None]


class Pool:
    """Processes, started anew where one of them has died."""

    def __init__(self, count: int, prepare: Callable[[], object] | None = None) -> None:
        """
        Args:
            prepare: called in each process, once; can be pickled.
        """
        self.count, self._prepare = count, prepare
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def run(self, tasks: Sequence[Task], deadline: float = inf, cut_off: bool = False) -> int:
        """Do the tasks and all that follows from them; how many were not.

        Args:
            deadline: seconds from now, after which nothing new is begun.
            cut_off: what runs then is ended at once, and the pool with it; else it is waited for.
        """
        end = time.monotonic() + deadline
        waiting, running = list(tasks), dict[Future[Any], Task]()
        try:
            while waiting or running:
                while waiting and len(running) < self.count and time.monotonic() <= end:
                    task = min(waiting, key=lambda task: task.rank)
                    waiting.remove(task)
                    running[self._submit(task)] = task
                left = max(0.0, end - time.monotonic()) if cut_off else inf
                done = wait(running, None if left == inf else left, FIRST_COMPLETED).done
                if not done:
                    break
                for future in done:
                    task, error = running.pop(future), future.exception()
                    if error is None:
                        waiting += task.then(future.result())
                    else:
                        task.failed(error)
        finally:
            if running:
                self._lifeline.close()
        return len(waiting) + len(running)

    def _submit(self, task: Task) -> Future[Any]:
        try:
            return self._executor.submit(task.call)
        except BrokenProcessPool:
            self._executor.shutdown(wait=False)
            self._start()
            return self._executor.submit(task.call)

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        end, self._lifeline = spawn.Pipe(duplex=False)
        arguments = (end, max(1, cores() // self.count), self._prepare)
        self._executor = ProcessPoolExecutor(self.count, spawn, _start_worker, arguments)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(lifeline: connection.Connection, threads: int, prepare: Callable[[], object] | None) -> None:
    """A process that works for this one: it is quiet, and ends when this one does, or closes the other end."""
    Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - bars would be drawn over each other
    quiet_libraries()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    if prepare is not None:
        prepare()


def _end_with(lifeline: connection.Connection) -> None:
    """Otherwise a process whose parent was killed, which closes the other end too, would wait for work for ever."""
    connection.wait([lifeline])
    os._exit(1)
