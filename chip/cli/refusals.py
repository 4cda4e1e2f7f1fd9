"""Why a command ends without a result, in one line."""

from __future__ import annotations

import typer

from chip.errors import InputError, one_line, printable

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What Typer raises at options; some versions of it bring click along under another name."""

_POSITIONAL = ("checkpoint", "edited", "a", "b", "folder", "receipt")
_LONGEST = 200  # characters of an option's value that are shown


def line_of(error: Exception) -> str:
    """The error without what a terminal would obey; with the option in place of the argument."""
    match error:
        case InputError(argument=str()):
            line = _in_terms_of_options(error)
        case OSError() if error.filename is not None:  # of a file that only an operation on it shows to be unusable
            line = f"{_shortened(str(error.filename))}: {one_line(error)}; check the path"
        case MemoryError():
            line = "out of memory; take a smaller --batch-size, smaller images, or a larger machine"
        case UsageError():
            line = _of_usage(error)
        case _:
            line = str(error)
    return printable(" ".join(line.splitlines()))


def _in_terms_of_options(error: InputError) -> str:
    """The error's line with the option in place of the argument: `--layers 5-9: ...` for `layers='5-9': ...`."""
    argument = str(error.argument)
    option = argument if argument in _POSITIONAL else f"--{argument.replace('_', '-')}"
    value = "" if error.value is None or error.value is True else f" {_shortened(str(error.value))}"
    return f"{option}{value}: {error.message}"


def _of_usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    command = "chip" if context is None else context.command_path
    message = getattr(error, "format_message", error.__str__)()
    return f"{_shortened(message.rstrip('.'))}; `{command} --help` says what there is"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
