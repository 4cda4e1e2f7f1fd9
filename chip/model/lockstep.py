"""Several runs of one model whose weights are streamed: all pass one layer before any passes the next.

A run is whatever calls the model, such as transformers' `generate`; it notices nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, Thread, current_thread
from typing import Generic, TypeVar

from chip.model.forward.trace import StopForward
from chip.model.weight_stream import Unit, WeightStream

T = TypeVar("T")


def run_in_lockstep(stream: WeightStream, runs: Sequence[Callable[[], T]]) -> list[T]:
    """What the runs return. One of them computes at a time, in a thread of its own, until it comes to a layer that is
    not there; of the layers that they wait for the earliest is read next.

    Raises: what the first of the runs to fail raises; the others end too.
    """
    workers = [_Worker(run) for run in runs]
    order = {unit: number for number, unit in enumerate(stream.units)}
    with _waiting(stream, workers):
        for worker in workers:
            worker.proceed()
        while waiting := [worker for worker in workers if worker.wanted is not None]:
            coming = min((worker.wanted for worker in waiting if worker.wanted is not None), key=order.__getitem__)
            for worker in waiting:
                if worker.wanted is coming:
                    worker.proceed()
    return [worker.result for worker in workers]


@contextmanager
def _waiting(stream: WeightStream, workers: Sequence[_Worker[T]]) -> Iterator[None]:
    """The stream asks a worker to wait before it reads a layer; at the end none is left."""
    of_thread = {worker.thread: worker for worker in workers}
    stream.before_reading = lambda unit: of_thread[current_thread()].wait_for(unit)
    try:
        yield
    finally:
        for worker in workers:
            worker.stop()
        stream.before_reading = None


class _Worker(Generic[T]):
    """A run, which computes while `proceed` waits, and waits while it does not."""

    result: T

    def __init__(self, run: Callable[[], T]) -> None:
        self._run = run
        self._its_turn, self._our_turn = Lock(), Lock()
        self._its_turn.acquire()
        self._our_turn.acquire()
        self._error: BaseException | None = None
        self._stopped = False
        self.wanted: Unit | None = None
        """What it waits for; None before it begins, and once it has ended."""
        self.thread = Thread(target=self._compute, name="chip-run", daemon=True)
        self._started = False

    def proceed(self) -> None:
        """Let it compute up to the next layer that is not there. Raises what the run raises."""
        if not self._started:
            self._started = True
            self.thread.start()
        self.wanted = None
        self._its_turn.release()
        self._our_turn.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait_for(self, unit: Unit) -> None:
        """In its thread: let the others compute until the layer's turn comes."""
        self.wanted = unit
        self._our_turn.release()
        self._its_turn.acquire()
        if self._stopped:
            raise StopForward(self)

    def stop(self) -> None:
        """End it, wherever it is."""
        if self._started and self.thread.is_alive():
            self._stopped = True
            self.wanted = None
            self._its_turn.release()
            self.thread.join()

    def _compute(self) -> None:
        self._its_turn.acquire()
        try:
            self.result = self._run()
        except StopForward:
            pass
        except BaseException as error:  # noqa: BLE001 - of another thread: `proceed` raises it in that of the caller
            self._error = error
        finally:
            self._our_turn.release()
