"""The command line: parse, call, print."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chip.cli.options import CommandsWithMethodSettings, given_settings, in_terms_of_options
from chip.errors import ChipError, ChipWarning, InputError, printable

if TYPE_CHECKING:
    from chip.evaluation.judge import Judge

app = typer.Typer(
    cls=CommandsWithMethodSettings,
    help="Forget a patient, a study, a section or an institution in a vision-language checkpoint. No training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

CheckpointFolder = Annotated[
    Path, typer.Argument(help="Folder in the Hugging Face format, safetensors.", metavar="CKPT")
]
Html = Annotated[
    Path | None, typer.Option("--html", help="Write it as a web page too: one file, nothing else.", metavar="FILE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; by default the best there is.")]
RecordsFile = Annotated[
    Path | None, typer.Option(help="Records file; by default records.jsonl or .parquet beside CKPT.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="auto: for a model larger than a device, over all devices, the host and the disk; needs accelerate."
    ),
]
BatchSizes = Annotated[
    str, typer.Option(help="Records per forward pass, or auto; changes the time only.", metavar="N|auto")
]


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write it.", metavar="DIR")] = Path("hospital"),
    overwrite: Annotated[bool, typer.Option(help="Replace what a former demo left there.")] = False,
) -> None:
    """Write a small hospital, and a small model that knows it, to try things on."""
    from chip.cli import console
    from chip.demo import write_demo
    from chip.report.text.tree import print_demo

    write_demo(folder, overwrite)
    print_demo(folder, console.out)


@app.command()
def tree(
    records: Annotated[Path, typer.Argument(help="Records (.jsonl, .parquet), or a folder that holds them.")],
    depth: Annotated[int, typer.Option(min=1, max=4, help="1: institutions only, 4: down to sections.")] = 3,
) -> None:
    """Show the hierarchy of the records, with how many each node holds."""
    from chip.cli import console
    from chip.data.hierarchy import Hierarchy
    from chip.data.readers import find_records, read_records
    from chip.report.text.tree import print_tree

    beside = records.is_dir() and not any(records.glob("*.parquet"))
    hierarchy = Hierarchy(read_records(find_records(records / "ckpt", None) if beside else records))
    print_tree(hierarchy, depth, console.out)


@app.command()
def inspect(checkpoint: CheckpointFolder, as_json: Json = False) -> None:
    """Show what a checkpoint is and which of its layers an edit would touch."""
    from chip.cli import console
    from chip.inspection import inspect as look
    from chip.report.text.inspect import print_inspection

    inspection = look(checkpoint)
    _print_json(inspection.to_json()) if as_json else print_inspection(inspection, console.out)


@app.command()
def edit(
    context: typer.Context,
    checkpoint: CheckpointFolder,
    forget: Annotated[list[str], typer.Option(help="A node's id or path; repeat for several.", metavar="NODE")],
    records: RecordsFile = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default CKPT-edited.")] = None,
    label: Annotated[
        str | None, typer.Option(help="What the receipt and the model card call the request; not the node.")
    ] = None,
    method: Annotated[str, typer.Option(help="shielded, or chip as published.")] = "shielded",
    target_modules: Annotated[
        str | None, typer.Option(help="Kinds of module to edit: connector,q,k,v,o,gate,up,down.", metavar="KINDS")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers of the text model: 22-27 (from 0), 50%-100% or all.")
    ] = None,
    device: Device = None,
    device_map: DeviceMap = None,
    batch_size: BatchSizes = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, write nothing.")] = False,
    link_unchanged: Annotated[
        bool,
        typer.Option("--link-unchanged", help="Hard-link shards that do not change; a write to one changes both."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")] = False,
    as_json: Json = False,
) -> None:
    """Make the model forget nodes, write it as a new checkpoint, and show what is left."""
    from chip.cli import console

    console.quiet_libraries()
    from chip.cli.progress import progress_bar
    from chip.distributed import is_main_process
    from chip.editing import edit as run
    from chip.methods import make_method
    from chip.report.text.edit import print_edit

    report = run(
        checkpoint,
        forget,
        records=records,
        out=out,
        label=label,
        method=make_method(method, given_settings(context)),
        target_modules=None if target_modules is None else target_modules.split(","),
        layers=layers,
        device=device,
        device_map=device_map,
        batch_size=_batch_size(batch_size),
        link_unchanged=link_unchanged,
        dry_run=dry_run,
        overwrite=overwrite,
        progress=progress_bar,
    )
    if is_main_process():
        _print_json(report.to_json()) if as_json else print_edit(report, console.out)


@app.command("eval")
def evaluate(
    checkpoint: CheckpointFolder,
    forget: Annotated[list[str], typer.Option(help="What is, or would be, forgotten; repeat.", metavar="NODE")],
    records: RecordsFile = None,
    reference: Annotated[
        Path | None, typer.Option(help="A model retrained without the nodes, to compare with.", metavar="CKPT")
    ] = None,
    attacks: Annotated[
        str,
        typer.Option(
            help="reconstruction, cross-modal, quantization, relearning, membership, or a plugin's; or all.",
            metavar="A,B|all",
        ),
    ] = "",
    judge: Annotated[
        str | None,
        typer.Option(
            help="Address of a language model that says which generated answers are right. It is sent questions and "
            "answers, as OpenAI's API has it; CHIP_JUDGE_KEY is its key.",
            metavar="URL",
        ),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Its name there.", metavar="NAME")] = None,
    device: Device = None,
    device_map: DeviceMap = None,
    batch_size: BatchSizes = "auto",
    seed: Annotated[int, typer.Option(help="Of intervals, drawn answers and relearning.")] = 0,
    html: Html = None,
    show_names: Annotated[
        bool, typer.Option("--show-names", help="Name the nodes on the page; by default it names nobody.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a model has forgotten and kept, and what attacks bring back. Nothing is written."""
    from chip.cli import console

    console.quiet_libraries()
    from chip.cli.progress import progress_bar
    from chip.evaluation.evaluate import evaluate as run
    from chip.report.html.eval import eval_page
    from chip.report.html.page import check_page, write_page
    from chip.report.html.receipt import receipt_in
    from chip.report.text.eval import print_evaluation

    if html is not None:
        check_page(html)
    elif show_names:
        raise InputError("--show-names: is for the page; add --html FILE")
    evaluation = run(
        checkpoint,
        forget,
        records=records,
        reference=reference,
        attacks=attacks,
        judge=_judge(judge, judge_model),
        device=device,
        device_map=device_map,
        batch_size=_batch_size(batch_size),
        seed=seed,
        progress=progress_bar,
    )
    if html is not None:
        other = None if reference is None else reference.resolve().name
        receipt = receipt_in(checkpoint)
        name = checkpoint.resolve().name
        page = eval_page(evaluation, name, other, forget=forget, show_names=show_names, receipt=receipt)
        write_page(html, page)
    _print_json(evaluation.to_json()) if as_json else print_evaluation(evaluation, console.out)


@app.command()
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
        check_page(html)
    difference = compare(a, b, progress_bar)
    if html is not None:
        write_page(html, diff_page(difference, a.resolve().name, b.resolve().name, receipt_in(b)))
    _print_json(difference.to_json()) if as_json else print_diff(difference, console.out)
    raise typer.Exit(0 if difference.equal else 1)


@app.command()
def verify(
    edited: Annotated[Path, typer.Argument(help="A folder that `chip edit` has written.", metavar="EDITED")],
    original: Annotated[
        Path | None, typer.Option(help="The checkpoint it was made from: checks what was not to change, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check an edited checkpoint against its receipt. Exit 0 when all is as it was written, 1 when not."""
    from chip.checkpoint.verify import verify as check
    from chip.cli import console
    from chip.cli.progress import progress_bar
    from chip.report.text.verify import print_verification

    verification = check(edited, original, progress=progress_bar)
    _print_json(verification.to_json()) if as_json else print_verification(verification, console.out)
    raise typer.Exit(1 if verification.faults else 0)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["CHIP_DEBUG"] = "1"


def _batch_size(text: str) -> int | None:
    """Records; None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise InputError("give a number of records, or auto", argument="batch_size", value=text)
    return int(text)


def _judge(address: str | None, model: str | None) -> Judge | None:
    """Who else is asked; said aloud, since records are sent away."""
    if address is None and model is None:
        return None
    if address is None or model is None:
        given, lacking = ("--judge", "--judge-model") if model is None else ("--judge-model", "--judge")
        raise InputError(f"{given}: goes with {lacking}")
    from chip.evaluation.judge import Judge

    judge = Judge(address, model, os.environ.get("CHIP_JUDGE_KEY"))
    print(f"questions and answers are sent to {address}", file=sys.stderr)
    return judge


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2))


class _Interrupted(BaseException):
    """Ctrl+C, or a request to terminate: on the way out, what was begun is cleaned up."""


def _interrupt(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # who asks twice does not want to wait
    raise _Interrupted(number)


_show_other_warning = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
    """One of chip's own is one line, said by the first of several processes; all others are shown as Python does."""
    if not issubclass(category, ChipWarning):
        _show_other_warning(message, category, *place, **options)
    elif os.environ.get("RANK", "0") == "0":
        print(f"chip: {printable(str(message))}", file=sys.stderr)


def main() -> None:
    """Run the command; a refusal is one line on stderr, and so is a warning."""
    warnings.showwarning = _show_warning
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except _Interrupted as interrupted:
        print("chip: interrupted", file=sys.stderr)
        sys.exit(128 + interrupted.args[0])
    except ChipError as error:
        if os.environ.get("CHIP_DEBUG"):
            raise
        print(f"chip: {printable(in_terms_of_options(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
