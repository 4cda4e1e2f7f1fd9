"""`chip eval`."""

from __future__ import annotations

import os
import sys
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
    Html,
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
from chip.errors import InputError

if TYPE_CHECKING:
    from chip.checkpoint.signing import SigningKey
    from chip.evaluation.judge import Judge
    from chip.evaluation.rows import Evaluation
    from chip.ledger import Ledger
    from chip.report.attestation import PendingStatement

Attacks = Annotated[
    str,
    typer.Option(
        help="reconstruction, cross-modal, in-context, wording, quantization, relearning, membership, "
        "relearning-target, leak, trace, steering, depth, or a plugin's; standard: the first seven, which cost little; "
        "all.",
        metavar="A,B|standard|all",
    ),
]
GeneralSources = Annotated[
    list[str] | None,
    typer.Option(
        help="What general ability is measured on: auto (prose that comes with chip; the default), none, a file of "
        "text or JSON lines, or a folder of images; repeat for several. Give other text than --keep got.",
        metavar="auto|none|PATH",
    ),
]
JudgeAddress = Annotated[
    str | None,
    typer.Option(
        help="Address of a language model that says which generated answers are right. It is sent questions and "
        "answers, as OpenAI's API has it; CHIP_JUDGE_KEY is its key.",
        metavar="URL",
    ),
]


def evaluate(
    checkpoint: CheckpointFolder,
    forget: Annotated[
        list[str] | None, typer.Option(help="What is, or would be, forgotten; repeat.", metavar="NODE")
    ] = None,
    records: RecordsFile = None,
    owners: OwnerMap = None,
    window: ImageWindow = None,
    images: ImageFolder = None,
    reference: Annotated[
        Path | None, typer.Option(help="A model retrained without the nodes, to compare with.", metavar="CKPT")
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            help="The model before the edit, for the attacks steering and depth, and beside general ability.",
            metavar="CKPT",
        ),
    ] = None,
    adapter: AdapterFolder = None,
    base: BaseFolder = None,
    attacks: Attacks = "",
    general: GeneralSources = None,
    judge: JudgeAddress = None,
    judge_model: Annotated[str | None, typer.Option(help="Its name there.", metavar="NAME")] = None,
    device: Device = None,
    device_map: DeviceMap = None,
    stream: Stream = False,
    batch_size: BatchSizes = "auto",
    seed: Annotated[int, typer.Option(help="Of intervals, drawn answers and relearning.")] = 0,
    html: Html = None,
    ledger: LedgerFile = None,
    ledger_key: LedgerKeyFile = None,
    open_: Annotated[
        bool, typer.Option("--open", help="All nodes that were edited into it by --ledger, in place of --forget.")
    ] = False,
    show_names: Annotated[
        bool, typer.Option("--show-names", help="Name the nodes on the page; by default it names nobody.")
    ] = False,
    statement: Annotated[
        Path | None,
        typer.Option(help="Write the figures as a statement of in-toto about the model's files.", metavar="FILE"),
    ] = None,
    sign: SignKey = None,
    sign_certificate: SignCertificates = None,
    as_json: Json = False,
) -> None:
    """Show what a model has forgotten and kept, and what attacks bring back. Nothing is written into its folder."""
    from chip.cli import console

    console.quiet_libraries()
    from chip.cli.progress import progress_bar
    from chip.evaluation.evaluate import evaluate as run
    from chip.recording.runs import EvalRecord
    from chip.recording.targets import edited_targets
    from chip.report.text.eval import print_evaluation

    _check_page(html, show_names, checkpoint, reference)
    key = signing_key(sign, sign_certificate)
    pending = _pending(statement, checkpoint, adapter, base, reference, key)
    requests, source = open_ledger(ledger, ledger_key), record_source(records, owners, window, images)

    def find(requests: Ledger) -> list[str]:
        return edited_targets(requests, checkpoint, source, progress=progress_bar)

    nodes = chosen_targets(forget, requests, open_, find)
    with EvalRecord(requests, checkpoint, nodes, source, reference, progress_bar) as record:
        evaluation = run(
            checkpoint,
            nodes,
            records=source,
            reference=reference,
            original=original,
            adapter=adapter,
            base=base,
            attacks=attacks,
            general=general or ("auto",),
            judge=_judge(judge, judge_model),
            device=device,
            device_map=device_map,
            stream=stream or None,
            batch_size=parse_batch_size(batch_size),
            seed=seed,
            progress=progress_bar,
        )
        record.evaluated(evaluation)
    if pending is not None:
        pending.write(evaluation)
    if html is not None:
        _write_page(html, evaluation, checkpoint, reference, nodes, show_names)
    print_json(evaluation.to_json()) if as_json else print_evaluation(evaluation, console.out)


def _pending(
    file: Path | None,
    checkpoint: Path,
    adapter: Path | None,
    base: Path | None,
    reference: Path | None,
    key: SigningKey | None,
) -> PendingStatement | None:
    """The statement that is to be written; None where none is asked for."""
    from chip.cli.progress import progress_bar
    from chip.report.attestation import PendingStatement

    if file is None:
        if key is not None:
            raise InputError("--sign: is for the statement; add --statement FILE")
        return None
    if adapter is not None:
        raise InputError("--statement: is about one folder; give the adapter as CKPT, and CKPT as --base")
    return PendingStatement.of(file, checkpoint, reference, key, base=base, progress=progress_bar)


def _check_page(file: Path | None, show_names: bool, checkpoint: Path, reference: Path | None) -> None:
    from chip.report.html.page import check_page

    if file is not None:
        check_page(file, checkpoint, *([] if reference is None else [reference]))
    elif show_names:
        raise InputError("--show-names: is for the page; add --html FILE")


def _write_page(
    file: Path, evaluation: Evaluation, checkpoint: Path, reference: Path | None, forget: list[str], show_names: bool
) -> None:
    from chip.report.html.eval import eval_page
    from chip.report.html.page import write_page
    from chip.report.html.receipt import receipt_in

    other, receipt = None if reference is None else reference.resolve().name, receipt_in(checkpoint)
    name = checkpoint.resolve().name
    write_page(file, eval_page(evaluation, name, other, forget=forget, show_names=show_names, receipt=receipt))


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
