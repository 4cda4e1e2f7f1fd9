"""Several files at a time: reading, copying and hashing leave Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

WORKERS = min(4, os.cpu_count() or 1)
"""One thread reads, writes and hashes slower than a disk of today; many only disturb each other."""

Result = TypeVar("Result")


@contextmanager
def in_threads(function: Callable[..., Result], jobs: Sequence[tuple[Any, ...]]) -> Iterator[Iterator[Result]]:
    """`function(*job)` of each job, in their order. What has not begun when the block ends is dropped."""
    pool = ThreadPoolExecutor(WORKERS)
    try:
        yield pool.map(lambda job: function(*job), jobs)
    finally:
        pool.shutdown(cancel_futures=True)
