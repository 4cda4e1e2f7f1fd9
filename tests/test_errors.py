"""What an error says to who calls the library, and what it hands to the command line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from chip.errors import ChipError, InputError, RunError, printable


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
