"""Batches that do not fit into memory: they are run again as smaller ones, and all later ones are smaller too."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from chip.errors import RunError
from chip.model.batching.batch import Batch, BatchTooLargeError, guard_memory
from chip.model.batching.batches import Batches

T = TypeVar("T")


def run_batches(batches: Batches, compute: Callable[[Batch], None]) -> None:
    """Compute every batch; one that does not fit again in halves. `compute` must change nothing before it succeeds.

    Raises:
        RunError: a single row does not fit.
    """
    for batch in batches.made():
        _run(batches, batch, compute)


def _run(batches: Batches, batch: Batch, compute: Callable[[Batch], None]) -> None:
    start = time.perf_counter()
    try:
        with guard_memory(batch):
            compute(batch)
    except BatchTooLargeError as error:
        _shrink(batches, error)
    else:
        batches.size.learn(batch.segments.numel(), time.perf_counter() - start)
        return
    middle = len(batch.rows) // 2
    for rows in (batch.rows[:middle], batch.rows[middle:]):
        _run(batches, batches.make(rows).to(batches.device), compute)


def retry_smaller(batches: Batches, attempt: Callable[[], T], start_over: Callable[[], None]) -> T:
    """What `attempt` returns, once no batch in it raises `BatchTooLargeError`; after each that does, all start over.

    Raises:
        RunError: a single row does not fit.
    """
    while True:
        try:
            return attempt()
        except BatchTooLargeError as error:
            _shrink(batches, error)
        start_over()  # behind the handler: the error's traceback would keep what its frames hold in memory


def _shrink(batches: Batches, error: BatchTooLargeError) -> None:
    """Smaller batches from now on.

    Raises:
        RunError: the batch was a single row.
    """
    if len(error.batch.rows) == 1:
        raise RunError(
            f"{batches.where(error.batch.rows[0])}: not even this row fits into the memory of {batches.device}; "
            "take --batch-size 1, smaller images, or a larger device"
        ) from error.__cause__
    batches.size.halve()
