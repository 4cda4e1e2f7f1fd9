"""`chip edit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chip.cli.arguments import (
    AdapterFolder,
    BaseFolder,
    BatchSizes,
    CheckpointFolder,
    Device,
    DeviceMap,
    ImageFolder,
    ImageWindow,
    Json,
    LedgerFile,
    LedgerKeyFile,
    OwnerMap,
    RecordsFile,
    SignCertificates,
    SignKey,
    Stream,
    chosen_targets,
    open_ledger,
    parse_batch_size,
    print_json,
    record_source,
    signing_key,
)
from chip.cli.options import given_settings

if TYPE_CHECKING:
    from chip.ledger import Ledger

KeepSources = Annotated[
    list[str] | None,
    typer.Option(
        help="What no record holds and is to stay: auto (the model's own text, plain prose, images; the default), "
        "none, a file of text or JSON lines, or a folder of images; repeat for several.",
        metavar="auto|none|PATH",
    ),
]
KeepTokens = Annotated[
    int | None,
    typer.Option(
        help="Text that auto makes, in tokens; by default 2 for each input of the widest module, 10 on a GPU."
    ),
]
KeepModel = Annotated[
    Path | None,
    typer.Option(help="Folder of the model before fine-tuning: it then writes the text for auto.", metavar="BASE"),
]
Out = Annotated[Path | None, typer.Option(help="Folder to write; by default CKPT-edited.")]
Label = Annotated[str | None, typer.Option(help="What the receipt and the model card call the request; not the node.")]
TargetModules = Annotated[
    str | None, typer.Option(help="Kinds of module to edit: connector,q,k,v,o,gate,up,down.", metavar="KINDS")
]
Layers = Annotated[str | None, typer.Option(help="Layers of the text model: 22-27 (from 0), 50%-100% or all.")]
LinkUnchanged = Annotated[
    bool,
    typer.Option("--link-unchanged", help="Hard-link shards that do not change; a write to one changes both."),
]
MaxLeft = Annotated[
    float | None,
    typer.Option(
        help="Exact match of the target that counts as forgotten; more ends with exit code 3. By default 0.10 more "
        "than never trained on it."
    ),
]
Accept = Annotated[
    bool, typer.Option("--accept", help="Write it also where those who stay lose more than --max-retain-drop.")
]
Save = Annotated[
    str,
    typer.Option(
        help="merged: a copy of CKPT with new weights. adapter: one to CKPT for peft, for review: it can be taken off.",
        metavar="merged|adapter",
    ),
]
Rank = Annotated[
    int | None, typer.Option(help="Most directions by which a weight changes; by default what the method wants.")
]

AllRecords = Annotated[
    bool,
    typer.Option("--all-records", help="Go by all retained records, and ask all, where else some are drawn of them."),
]

STILL_THERE = 3
"""Exit code of an edit that was written, and left more of the target than it may."""


def edit(
    context: typer.Context,
    checkpoint: CheckpointFolder,
    forget: Annotated[
        list[str] | None, typer.Option(help="A node's id or path; repeat for several.", metavar="NODE")
    ] = None,
    records: RecordsFile = None,
    owners: OwnerMap = None,
    window: ImageWindow = None,
    images: ImageFolder = None,
    keep: KeepSources = None,
    keep_tokens: KeepTokens = None,
    keep_model: KeepModel = None,
    out: Out = None,
    adapter: AdapterFolder = None,
    base: BaseFolder = None,
    save: Save = "merged",
    rank: Rank = None,
    label: Label = None,
    method: Annotated[
        str,
        typer.Option(help="shielded+gated_text, shielded, gated_text, gated, shielded+gated, or chip as published."),
    ] = "shielded+gated_text",
    target_modules: TargetModules = None,
    layers: Layers = None,
    device: Device = None,
    device_map: DeviceMap = None,
    stream: Stream = False,
    batch_size: BatchSizes = "auto",
    all_records: AllRecords = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, write nothing.")] = False,
    link_unchanged: LinkUnchanged = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder of a former edit.")] = False,
    max_left: MaxLeft = None,
    accept: Accept = False,
    ledger: LedgerFile = None,
    ledger_key: LedgerKeyFile = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Forget all nodes whose requests are open in --ledger, in place of --forget.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Edit also where the model does not know the target.")] = False,
    sign: SignKey = None,
    sign_certificate: SignCertificates = None,
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
    from chip.recording.targets import open_targets
    from chip.report.text.edit import print_edit

    requests, source = open_ledger(ledger, ledger_key), record_source(records, owners, window, images)

    def find(requests: Ledger) -> list[str]:
        return open_targets(requests, checkpoint, source, progress=progress_bar)

    report = run(
        checkpoint,
        chosen_targets(forget, requests, open_, find),
        records=source,
        keep=Keep(tuple(keep or (AUTO,)), keep_tokens, keep_model),
        out=out,
        adapter=adapter,
        base=base,
        save=save,
        rank=rank,
        label=label,
        method=make_method(method, given_settings(context)),
        target_modules=None if target_modules is None else target_modules.split(","),
        layers=layers,
        device=device,
        device_map=device_map,
        stream=stream or None,
        batch_size=parse_batch_size(batch_size),
        all_records=all_records,
        link_unchanged=link_unchanged,
        dry_run=dry_run,
        overwrite=overwrite,
        max_left=max_left,
        accept=accept,
        force=force,
        sign=signing_key(sign, sign_certificate),
        ledger=requests,
        progress=progress_bar,
    )
    if is_main_process():
        print_json(report.to_json()) if as_json else print_edit(report, console.out)
    if report.outcome.forgotten is False:
        raise typer.Exit(STILL_THERE)
