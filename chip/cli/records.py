"""`chip demo` and `chip tree`: records and who is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chip.cli.arguments import Reading


def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write it.", metavar="DIR")] = Path("hospital"),
    overwrite: Annotated[bool, typer.Option(help="Complete what a former demo left there.")] = False,
) -> None:
    """Write a small hospital, and a small model that knows it, to try things on."""
    from chip.cli import console
    from chip.demo import write_demo
    from chip.report.text.tree import print_demo

    write_demo(folder, overwrite)
    print_demo(folder, console.out)


def tree(
    records: Annotated[Path, typer.Argument(help="Records, or a folder that holds them.")],
    reading: Reading,
    depth: Annotated[int, typer.Option(min=1, max=4, help="1: institutions only, 4: down to sections.")] = 3,
) -> None:
    """Show the hierarchy of the records, with how many each node holds."""
    from chip.cli import console
    from chip.data.hierarchy import Hierarchy
    from chip.data.readers import BESIDE, find_records, read_records
    from chip.report.text.tree import print_tree

    beside = records.is_dir() and any((records / name).is_file() for name in BESIDE)
    file = find_records(records / "ckpt", None) if beside else records
    hierarchy = Hierarchy(read_records(reading.source(file)))
    print_tree(hierarchy, depth, console.out)
