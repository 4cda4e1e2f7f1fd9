"""`chip eval`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chip.cli.arguments import (
    CheckpointFolder,
    Html,
    Json,
    Reading,
    RecordsFile,
    Running,
    Signing,
    Targets,
    print_json,
)
from chip.errors import InputError

if TYPE_CHECKING:
    from chip.checkpoint.signing import SigningKey
    from chip.evaluation.judge import Judge
    from chip.evaluation.rows import Evaluation
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
    *,
    targets: Targets,
    records: RecordsFile = None,
    reading: Reading,
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
    attacks: Attacks = "",
    general: GeneralSources = None,
    judge: JudgeAddress = None,
    judge_model: Annotated[str | None, typer.Option(help="Its name there.", metavar="NAME")] = None,
    running: Running,
    seed: Annotated[int, typer.Option(help="Of intervals, drawn answers and relearning.")] = 0,
    html: Html = None,
    show_names: Annotated[
        bool, typer.Option("--show-names", help="Name the nodes on the page; by default it names nobody.")
    ] = False,
    statement: Annotated[
        Path | None,
        typer.Option(help="Write the figures as a statement of in-toto about the model's files.", metavar="FILE"),
    ] = None,
    signing: Signing,
    as_json: Json = False,
) -> None:
    """Show what a model has forgotten and kept, and what attacks bring back. Nothing is written into its folder."""
    from chip.checkpoint.hub import checkpoint_folder
    from chip.cli import console

    console.quiet_libraries()
    from chip.cli.progress import progress_bar
    from chip.evaluating import evaluate as run
    from chip.report.text.eval import print_evaluation

    nodes, ledger = targets.nodes, targets.opened()
    checkpoint = checkpoint_folder(checkpoint, running.revision)
    reference = None if reference is None else checkpoint_folder(reference, argument="reference")
    base = None if running.base is None else checkpoint_folder(running.base, argument="base")
    running = replace(running, base=base, revision=None)
    _check_page(html, show_names, checkpoint, reference)
    pending = _pending(statement, checkpoint, running, reference, signing.key())
    evaluation = run(
        checkpoint,
        nodes,
        records=reading.source(records),
        reference=reference,
        original=original,
        attacks=attacks,
        general=general or ("auto",),
        judge=_judge(judge, judge_model),
        seed=seed,
        ledger=ledger,
        progress=progress_bar,
        **running.keywords,
    )
    if pending is not None:
        pending.write(evaluation)
    if html is not None:
        _write_page(html, evaluation, checkpoint, reference, nodes, show_names)
    print_json(evaluation.to_json()) if as_json else print_evaluation(evaluation, console.out)


def _pending(
    file: Path | None, checkpoint: Path, running: Running, reference: Path | None, key: SigningKey | None
) -> PendingStatement | None:
    """The statement that is to be written; None where none is asked for."""
    from chip.cli.progress import progress_bar
    from chip.report.attestation import PendingStatement

    if file is None:
        if key is not None:
            raise InputError("--sign: is for the statement; add --statement FILE")
        return None
    if running.adapter is not None:
        raise InputError("--statement: is about one folder; give the adapter as CKPT, and CKPT as --base")
    return PendingStatement.of(file, checkpoint, reference, key, base=running.base, progress=progress_bar)


def _check_page(file: Path | None, show_names: bool, checkpoint: Path, reference: Path | None) -> None:
    from chip.report.html.page import check_page

    if file is not None:
        check_page(file, checkpoint, *([] if reference is None else [reference]))
    elif show_names:
        raise InputError("--show-names: is for the page; add --html FILE")


def _write_page(
    file: Path,
    evaluation: Evaluation,
    checkpoint: Path,
    reference: Path | None,
    named: list[str] | None,
    show_names: bool,
) -> None:
    from chip.checkpoint.paths import shown_name
    from chip.report.html.eval import eval_page
    from chip.report.html.page import write_page
    from chip.report.html.receipt import receipt_in

    other, receipt = None if reference is None else shown_name(reference), receipt_in(checkpoint)
    name, forget = shown_name(checkpoint), evaluation.targets if named is None else named
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
