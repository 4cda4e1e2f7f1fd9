"""Work for several processes, of which each piece may bring more; what has begun is finished first."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from benchmarks.forgetting.running import cores, start_worker


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

    def __init__(self, count: int) -> None:
        self.count = count
        self._executor = self._start()

    def submit(self, task: Task) -> Future[Any]:
        try:
            return self._executor.submit(task.call)
        except BrokenProcessPool:
            self._executor.shutdown(wait=False)
            self._executor = self._start()
            return self._executor.submit(task.call)

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        threads = max(1, cores() // self.count)
        return ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"), start_worker, (threads,))


def run(tasks: Sequence[Task], count: int, deadline: float | None) -> int:
    """Do the tasks and all that follows from them; how many were not begun.

    Args:
        count: processes.
        deadline: seconds from now, after which nothing new is begun.
    """
    end = None if deadline is None else time.monotonic() + deadline
    pool, waiting, running = Pool(count), list(tasks), dict[Future[Any], Task]()
    try:
        while waiting or running:
            late = end is not None and time.monotonic() > end
            while waiting and len(running) < count and not late:
                task = min(waiting, key=lambda task: task.rank)
                waiting.remove(task)
                running[pool.submit(task)] = task
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, error = running.pop(future), future.exception()
                if error is None:
                    waiting += task.then(future.result())
                else:
                    task.failed(error)
    finally:
        pool.close()
    return len(waiting)
