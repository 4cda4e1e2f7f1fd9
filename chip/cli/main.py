"""The command line: its commands, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Annotated, Any

import typer

from chip.cli import checkpoints, edit, evaluate, ledger, proof, records
from chip.cli.options import CommandsWithMethodSettings, command
from chip.cli.refusals import UsageError, line_of
from chip.cli.streams import prepare_streams
from chip.errors import ChipError, ChipWarning, InputError, printable

app = typer.Typer(
    cls=CommandsWithMethodSettings,
    help="Forget a patient, a study, a section or an institution in a vision-language checkpoint. No training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.command()(records.demo)
app.command()(command(records.tree))
app.command()(command(checkpoints.inspect))
app.command()(command(edit.edit))
app.command("eval")(command(evaluate.evaluate))
app.command()(checkpoints.diff)
app.command()(checkpoints.verify)
app.command()(proof.bom)
app.command()(command(proof.reproduce))
app.add_typer(ledger.app, name="ledger")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["CHIP_DEBUG"] = "1"


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
    prepare_streams()
    warnings.showwarning = _show_warning
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="chip", standalone_mode=False)
        sys.stdout.flush()
    except _Interrupted as interrupted:
        print("chip: interrupted", file=sys.stderr)
        code = 128 + interrupted.args[0]
    except (ChipError, UsageError, OSError, MemoryError) as error:
        if os.environ.get("CHIP_DEBUG"):
            raise
        print(f"chip: {line_of(error)}", file=sys.stderr)
        code = getattr(error, "exit_code", InputError.exit_code)
    if "WORLD_SIZE" in os.environ:  # else torch.distributed need not be loaded
        from chip.distributed import exit_process

        exit_process(code)
    sys.exit(code)
