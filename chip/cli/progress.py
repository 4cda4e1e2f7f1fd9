"""Progress of long work, as a person sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chip.cli import console
from chip.errors import printable


@contextmanager
def progress_bar(what: str, steps: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with the time left; one plain line where stderr is no terminal.

    Args:
        what: as it stands: a folder's name in it is no markup.
    """
    what = printable(what)
    if not console.err.is_terminal:
        console.err.print(f"{what} ...", markup=False, emoji=False)
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description:<18}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console.err, transient=True) as bar:
        task = bar.add_task(what, total=steps)
        yield lambda steps: bar.advance(task, steps)
