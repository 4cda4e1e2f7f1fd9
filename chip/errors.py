"""The errors that chip raises for its user: each is one line that says what is wrong, where, and what to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath

_LONGEST_REASON = 200  # characters


class ChipError(Exception):
    """One line for the user: what is wrong, where, and a hint."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InputError(ChipError):
    """The request, the records or the checkpoint cannot be used as they are. Nothing has been written.

    Where an argument is to blame, the error carries its name in Python and its value: `str()` puts them in front, and
    the command line prints `message` behind the option of that name instead.

    Args:
        message: one line without the argument, such as `no such folder; give the folder of a checkpoint`.
        argument: name of the argument, as in the signature of the public function (`edit`, `evaluate`, ...).
        value: what was given for it; of a list, the one element that is wrong.
    """

    exit_code = 2

    def __init__(self, message: str, *, argument: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.argument = argument
        self.value = value

    def __str__(self) -> str:
        if self.argument is None:
            return self.message
        value = str(self.value) if isinstance(self.value, PurePath) else self.value
        return f"{self.argument}={value!r}: {self.message}"


class RunError(ChipError):
    """The run itself failed: a NaN, a factorization, a read-back that differs. No output is left."""


class ChipWarning(UserWarning):
    """One line for the user about something that may not be what they meant. The run goes on."""


def printable(text: str) -> str:
    """`text` with every character that a terminal would obey, or could not show, escaped as Python does it."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def one_line(error: BaseException) -> str:
    """What an error says, on one line; of the system's errors, the reason alone."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())


def reason(error: BaseException) -> str:
    """The first sentence of what another library's error says; with the error's kind, where that is all but a word."""
    words = printable(one_line(error)).partition(". ")[0]
    if len(words) > _LONGEST_REASON:
        words = f"{words[:_LONGEST_REASON]} ..."
    return words if " " in words else f"{type(error).__name__}: {words}".removesuffix(": ")


@contextmanager
def foreign_code(
    place: object, trouble: str, hint: str, leave: Callable[[Exception], bool] = lambda _: False
) -> Iterator[None]:
    """Whatever other libraries raise in the block becomes an `InputError`: `place: trouble (what they say); hint`.

    Only calls of theirs may stand in the block. They take a file's content for what it ought to be, so that a wrong one
    ends in an exception of any kind, somewhere in their code: a list of kinds would never be whole.

    Args:
        leave: which errors are the caller's to handle.
    """
    try:
        yield
    except ChipError:
        raise
    except Exception as error:
        if leave(error):
            raise
        raise _refusal(place, trouble, error, hint) from error
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":  # a panic in Rust, as of the tokenizers, is no `Exception`
            raise
        raise _refusal(place, trouble, error, hint) from error


def _refusal(place: object, trouble: str, error: BaseException, hint: str) -> InputError:
    return InputError(f"{place}: {trouble} ({reason(error)}); {hint}")
