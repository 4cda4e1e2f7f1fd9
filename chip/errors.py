"""What chip says when it will not, or cannot, go on."""


class ChipError(Exception):
    """One line for the user: what is wrong, where, and the mend."""

    exit_code = 1


class InputError(ChipError):
    """The request, the records or the checkpoint cannot be used as they are. Nothing has been written."""

    exit_code = 2


class RunError(ChipError):
    """The run itself failed: a NaN, a factorization, a read-back that differs. No output is left."""


def printable(text: str) -> str:
    """`text` with what a terminal would obey, or could not show, escaped as Python does it."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )
