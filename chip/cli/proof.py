"""`chip bom` and `chip reproduce`: what an edited checkpoint is made of, and whether its edit can be made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chip.cli.arguments import Json, Loading, Reading, RecordsFile, print_json

EditedFolder = Annotated[Path, typer.Argument(help="A folder that `chip edit` has written.", metavar="EDITED")]


def bom(edited: EditedFolder) -> None:
    """Print the bill of materials of an edited checkpoint: CycloneDX JSON with ancestors, patches and figures."""
    from chip.checkpoint.bom import bom as bill_of_materials

    print(bill_of_materials(edited), end="")


def reproduce(
    receipt: Annotated[
        Path, typer.Argument(help="A folder that `chip edit` has written, or its receipt.", metavar="RECEIPT")
    ],
    source: Annotated[Path, typer.Option(help="The checkpoint, or adapter, it was made from.", metavar="CKPT")],
    forget: Annotated[list[str], typer.Option(help="The node, which no receipt holds; repeat.", metavar="NODE")],
    *,
    measure_on: Annotated[
        Path | None, typer.Option(help="The copy that its statistics were measured on.", metavar="FOLDER")
    ] = None,
    records: RecordsFile = None,
    reading: Reading,
    keep: Annotated[
        list[str] | None, typer.Option(help="Files that were to be kept by, again.", metavar="auto|none|PATH")
    ] = None,
    loading: Loading,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for a copy that is removed again; by default the system's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an edit again by its receipt, and compare the weights. Exit 0 when they are the same, 1 when not."""
    from chip.cli import console

    console.quiet_libraries()
    from chip.cli.progress import progress_bar
    from chip.report.text.reproduce import print_reproduction
    from chip.reproduction import reproduce as run

    reproduction = run(
        receipt,
        source,
        forget,
        measure_on=measure_on,
        records=reading.source(records),
        keep=keep,
        scratch=scratch,
        progress=progress_bar,
        **loading.keywords,
    )
    print_json(reproduction.to_json()) if as_json else print_reproduction(reproduction, console.out)
    raise typer.Exit(0 if reproduction.equal else 1)
