"""`chip inspect`, `diff` and `verify`: what a checkpoint is, what differs, and whether it is as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chip.cli.arguments import CheckpointFolder, Html, Json, Loading, Reading, print_json


def inspect(
    checkpoint: CheckpointFolder,
    *,
    records: Annotated[
        Path | None, typer.Option(help="Records of which a few pass through the model, to see its attention sinks.")
    ] = None,
    reading: Reading,
    loading: Loading,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint is and which of its layers an edit would touch."""
    from chip.cli import console

    console.quiet_libraries()
    from chip.inspection import inspect as look
    from chip.report.text.inspect import print_inspection

    source = reading.source(records)
    given = None if records is None and not source.given else source
    inspection = look(checkpoint, given, **loading.keywords)
    print_json(inspection.to_json()) if as_json else print_inspection(inspection, console.out)


def diff(
    a: Annotated[Path, typer.Argument(help="A checkpoint folder.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Another one.", metavar="B")],
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two checkpoints, tensor by tensor. Exit 0 when equal, 1 when different."""
    from chip.checkpoint.diff import diff as compare
    from chip.cli import console
    from chip.cli.progress import progress_bar
    from chip.report.html.diff import diff_page
    from chip.report.html.page import check_page, write_page
    from chip.report.html.receipt import receipt_in
    from chip.report.text.diff import print_diff

    console.quiet_libraries()
    if html is not None:
        check_page(html, a, b)
    difference = compare(a, b, progress_bar)
    if html is not None:
        write_page(html, diff_page(difference, a.resolve().name, b.resolve().name, receipt_in(b)))
    print_json(difference.to_json()) if as_json else print_diff(difference, console.out)
    raise typer.Exit(0 if difference.equal else 1)


def verify(
    edited: Annotated[Path, typer.Argument(help="A folder that `chip edit` has written.", metavar="EDITED")],
    original: Annotated[
        Path | None, typer.Option(help="The checkpoint it was made from: checks what was not to change, too.")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="PEM file: it must be signed with this key.", metavar="FILE")
    ] = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option(help="PEM file of a root certificate that must vouch for who signed it; repeat.", metavar="FILE"),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Statement of chip eval: it must be of this folder, and signed by the same.", metavar="FILE"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check an edited checkpoint against its receipt. Exit 0 when all is as it was written, 1 when not."""
    from chip.checkpoint.verify import verify as check
    from chip.cli import console
    from chip.cli.progress import progress_bar
    from chip.report.text.verify import print_verification

    verification = check(
        edited, original, public_key=public_key, trust=trust or (), evaluation=evaluation, progress=progress_bar
    )
    print_json(verification.to_json()) if as_json else print_verification(verification, console.out)
    raise typer.Exit(1 if verification.faults else 0)
