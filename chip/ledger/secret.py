"""Secrets of the operator's: in a file, or in an environment variable."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

from chip.errors import ChipWarning, InputError, one_line
from chip.ledger.place import check_outside_models
from chip.regular_file import check_regular_file

_SHORTEST = 32  # bytes: as many as HMAC-SHA256 gives, and AES-256 takes; a guessed key gives every node away
_LONGEST = 4096


def read_secret(file: Path | None, environment: str, argument: str, apart_from: str) -> bytes | None:
    """The key in a file, else in the environment variable; None where there is neither.

    White space around it does not count.

    Args:
        argument: what an error about the file's place names.
        apart_from: what it belongs to, for the hint.

    Raises:
        InputError: the file cannot be read or lies in a model's folder; the key is shorter than 32 bytes.
    """
    hint = f"make one with `openssl rand -hex 32`, and keep it apart from the {apart_from}"
    if file is None:
        given = os.environ.get(environment)
        return None if given is None else _checked(given.encode("utf-8", "surrogateescape"), environment, hint)
    check_outside_models(file, argument)
    try:
        check_regular_file(file)
        with file.open("rb") as content:
            secret = content.read(_LONGEST + 1)
            mode = os.fstat(content.fileno()).st_mode
    except OSError as error:
        raise InputError(f"{file}: the key cannot be read ({one_line(error)}); {hint}") from error
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        warnings.warn(f"{file}: others may read this key; `chmod 600` keeps it to you", ChipWarning, stacklevel=3)
    return _checked(secret, str(file), hint)


def _checked(text: bytes, place: str, hint: str) -> bytes:
    secret = text.strip()
    if not _SHORTEST <= len(secret) <= _LONGEST:
        raise InputError(f"{place}: a key has {_SHORTEST} to {_LONGEST:,} bytes, not {len(secret):,}; {hint}")
    return secret
