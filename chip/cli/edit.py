"""`chip edit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from chip.cli.arguments import (
    CheckpointFolder,
    Json,
    Reading,
    RecordsFile,
    Running,
    Signing,
    Targets,
    print_json,
)
from chip.cli.options import given_settings

STILL_THERE = 3
"""Exit code of an edit that was written, and left more of the target than it may."""


@dataclass(frozen=True)
class Keeping:
    """What no record holds and is to stay."""

    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="What no record holds and is to stay: auto (the model's own text, plain prose, images; the default), "
            "none, a file of text or JSON lines, or a folder of images; repeat for several.",
            metavar="auto|none|PATH",
        ),
    ] = None
    keep_tokens: Annotated[
        int | None,
        typer.Option(
            help="Text that auto makes, in tokens; by default 2 for each input of the widest module, 10 on a GPU."
        ),
    ] = None
    keep_model: Annotated[
        Path | None,
        typer.Option(help="Folder of the model before fine-tuning: it then writes the text for auto.", metavar="BASE"),
    ] = None


@dataclass(frozen=True)
class Editing:
    """What is edited and how it is written: keyword arguments of `EditOptions`."""

    target_modules: Annotated[
        str | None, typer.Option(help="Kinds of module to edit: connector,q,k,v,o,gate,up,down.", metavar="KINDS")
    ] = None
    layers: Annotated[str | None, typer.Option(help="Layers of the text model: 22-27 (from 0), 50%-100% or all.")] = (
        None
    )
    rank: Annotated[
        int | None, typer.Option(help="Most directions by which a weight changes; by default what the method wants.")
    ] = None
    measure_on: Annotated[
        Path | None,
        typer.Option(
            help="A copy of the model, such as a quantized one, to measure on; CKPT's own weights are edited.",
            metavar="FOLDER",
        ),
    ] = None
    save: Annotated[
        str,
        typer.Option(
            help="merged: a copy of CKPT with new weights. adapter: one to CKPT for peft, for review: it can be taken "
            "off.",
            metavar="merged|adapter",
        ),
    ] = "merged"
    label: Annotated[
        str | None, typer.Option(help="What the receipt and the model card call the request; not the node.")
    ] = None
    link_unchanged: Annotated[
        bool,
        typer.Option("--link-unchanged", help="Hard-link shards that do not change; a write to one changes both."),
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder of a former edit.")] = False
    max_left: Annotated[
        float | None,
        typer.Option(
            help="Exact match of the target that counts as forgotten; more ends with exit code 3. By default 0.10 more "
            "than never trained on it."
        ),
    ] = None
    accept: Annotated[
        bool, typer.Option("--accept", help="Write it also where those who stay lose more than --max-retain-drop.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Edit also where the model does not know the target.")] = False
    all_records: Annotated[
        bool,
        typer.Option(
            "--all-records", help="Go by all retained records, and ask all, where else some are drawn of them."
        ),
    ] = False

    @property
    def keywords(self) -> Mapping[str, Any]:
        kinds = None if self.target_modules is None else self.target_modules.split(",")
        return {**vars(self), "target_modules": kinds}


def edit(
    context: typer.Context,
    checkpoint: CheckpointFolder,
    *,
    targets: Targets,
    records: RecordsFile = None,
    reading: Reading,
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default CKPT-edited.")] = None,
    method: Annotated[
        str,
        typer.Option(help="combined, shielded, gated, gated_text, two of them with a +, or chip as published."),
    ] = "combined",
    keeping: Keeping,
    editing: Editing,
    running: Running,
    signing: Signing,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Make the model forget nodes, write it as a new checkpoint, and show what is left.

    Exit code 3: it is written, and the target is still there.
    """
    from chip.cli import console

    console.quiet_libraries()
    from chip.cli.progress import progress_bar
    from chip.distributed import is_main_process
    from chip.editing import edit as run
    from chip.general.collect import AUTO, Keep
    from chip.methods import make_method
    from chip.report.text.edit import print_edit

    report = run(
        checkpoint,
        targets.nodes,
        records=reading.source(records),
        keep=Keep(tuple(keeping.keep or (AUTO,)), keeping.keep_tokens, keeping.keep_model),
        out=out,
        method=make_method(method, given_settings(context)),
        dry_run=dry_run,
        ledger=targets.opened(),
        progress=progress_bar,
        sign=signing.key(),
        **editing.keywords,
        **running.keywords,
    )
    if is_main_process():
        print_json(report.to_json()) if as_json else print_edit(report, console.out)
    if report.outcome.forgotten is False:
        raise typer.Exit(STILL_THERE)
