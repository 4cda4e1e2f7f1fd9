"""How long work tells how far it is, without knowing who looks on."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

ProgressCallback = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Given what is being done and in how many steps: a context, and in it a function to call with the number of
steps just taken."""


@contextmanager
def silent(_: str, __: int) -> Iterator[Callable[[int], None]]:
    """Progress that nobody watches."""
    yield lambda _: None
