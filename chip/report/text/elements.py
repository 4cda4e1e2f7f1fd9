"""What all terminal reports are made of."""

from __future__ import annotations

from rich import box
from rich.console import OverflowMethod
from rich.table import Table
from rich.text import Text

from chip.errors import printable


def escaped(value: object, style: str = "") -> Text:
    """What comes from a user's files or options, as it stands.

    A `Text` is read neither for markup (`[red]`) nor for emoji (`:smile:`); what a terminal would obey is escaped.
    """
    return Text(printable(str(value)), style=style)


def plain_table(*columns: str, left: int = 2, title: str = "", overflow: OverflowMethod = "fold") -> Table:
    """A table with a line below its head.

    Args:
        left: how many of the columns are aligned to the left; the others, with numbers, to the right.
        overflow: what becomes of a word that is longer than its column is wide.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title or None, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", overflow=overflow)
    return table
