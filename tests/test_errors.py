"""What an error says to who calls the library, and what it hands to the command line."""

from __future__ import annotations

import errno
import math
import pickle
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path

import pytest

from chip.cli.refusals import line_of
from chip.errors import ChipError, InputError, RunError, foreign_code, printable
from chip.methods import METHODS
from chip.methods.settings import settings_of


def test_an_error_without_an_argument_is_its_message() -> None:
    assert str(InputError("no records; give --records")) == "no records; give --records"
    assert str(RunError("the disk is full")) == RunError("the disk is full").message == "the disk is full"


def test_an_error_names_its_argument_as_python_writes_it() -> None:
    error = InputError("give layers as 0-3", argument="layers", value="x")
    assert str(error) == "layers='x': give layers as 0-3"
    assert (error.argument, error.value, error.message) == ("layers", "x", "give layers as 0-3")
    assert str(InputError("give a number", argument="ridge", value=None)) == "ridge=None: give a number"


def test_a_path_is_shown_as_text_on_any_system() -> None:
    assert str(InputError("exists already", argument="out", value=Path("a") / "b")) == f"out={str(Path('a/b'))!r}: " + (
        "exists already"
    )


@pytest.mark.parametrize("error", [InputError("wrong", argument="out", value=3), RunError("failed")])
def test_an_error_survives_the_way_to_another_process(error: ChipError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable("é \x1b[31m\n") == "é \\x1b[31m\\n"


@pytest.mark.parametrize("error", [ValueError("no such mode"), KeyError("mode"), MemoryError(), RecursionError("deep")])
def test_what_another_library_raises_is_one_line(error: Exception) -> None:
    with pytest.raises(InputError, match=r"^a\.json: cannot be read \(.*\); fetch it again$") as caught, _foreign():
        raise error
    assert caught.value.__cause__ is error


def test_a_panic_of_a_library_in_rust_is_one_line() -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    with pytest.raises(InputError, match=r"\(index out of bounds\)"), _foreign():
        raise panic("index out of bounds")


@pytest.mark.parametrize("error", [RunError("a NaN"), KeyboardInterrupt(), SystemExit(3)])
def test_what_is_not_a_library_s_stays(error: BaseException) -> None:
    with pytest.raises(type(error)), _foreign():
        raise error


def test_what_the_caller_handles_is_left_to_it() -> None:
    leave = foreign_code("a", "b", "c", leave=lambda error: "out of memory" in str(error))
    with pytest.raises(RuntimeError, match="out of memory"), leave:
        raise RuntimeError("out of memory")


def _foreign() -> AbstractContextManager[None]:
    return foreign_code("a.json", "cannot be read", "fetch it again")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("give a number", argument="max_left", value="\x1b[2J"), "--max-left \\x1b[2J: give a number"),
        (InputError("no such node", argument="forget", value="a" * 300), f"--forget {'a' * 200}…: no such node"),
        (InputError("a line\nand another"), "a line and another"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "b" * 300),
            f"{'b' * 200}…: File name too long; check the path",
        ),
        (MemoryError(), "out of memory; take a smaller --batch-size, smaller images, or a larger machine"),
    ],
)
def test_a_refusal_is_a_line_that_a_terminal_can_show(error: Exception, line: str) -> None:
    assert line_of(error) == line


def test_a_setting_takes_no_number_whose_square_is_none() -> None:
    for name, (_, meaning) in chain.from_iterable(settings_of(method).items() for method in METHODS.values()):
        for value in (1e39, -1e39, 1e308, 10**400, math.inf, math.nan):
            with pytest.raises(InputError, match=name):
                meaning.check(name, value)
