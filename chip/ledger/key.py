"""The key of a ledger: it makes pseudonyms of nodes, and shows which entries were written by whoever holds it."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chip.errors import ChipWarning, InputError, one_line
from chip.ledger.place import check_outside_models

ENVIRONMENT = "CHIP_LEDGER_KEY"
"""Holds the key itself, where no file is given."""
_SHORTEST = 32  # bytes: as many as HMAC-SHA256 gives; a guessed key gives every node away
_LONGEST = 4096
_HINT = "make one with `openssl rand -hex 32`, and keep it apart from the ledger"


@dataclass(frozen=True)
class LedgerKey:
    """A secret of at least 32 bytes. Its `repr` does not show it."""

    _secret: bytes = field(repr=False)

    @classmethod
    def read(cls, file: Path | None = None) -> LedgerKey | None:
        """The key in a file, else in the environment variable `CHIP_LEDGER_KEY`; None where there is neither.

        White space around it does not count.

        Raises:
            InputError: the file cannot be read or lies in a model's folder; the key is shorter than 32 bytes.
        """
        if file is None:
            given = os.environ.get(ENVIRONMENT)
            return None if given is None else cls._of(given.encode("utf-8", "surrogateescape"), ENVIRONMENT)
        check_outside_models(file, "key")
        try:
            if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe waits for who writes into it
                raise OSError(errno.EINVAL, "no regular file")
            with file.open("rb") as content:
                secret = content.read(_LONGEST + 1)
                mode = os.fstat(content.fileno()).st_mode
        except OSError as error:
            raise InputError(f"{file}: the key cannot be read ({one_line(error)}); {_HINT}") from error
        if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
            warnings.warn(f"{file}: others may read this key; `chmod 600` keeps it to you", ChipWarning, stacklevel=2)
        return cls._of(secret, str(file))

    @classmethod
    def _of(cls, text: bytes, place: str) -> LedgerKey:
        secret = text.strip()
        if not _SHORTEST <= len(secret) <= _LONGEST:
            raise InputError(f"{place}: a key has {_SHORTEST} to {_LONGEST:,} bytes, not {len(secret):,}; {_HINT}")
        return cls(secret)

    @property
    def id(self) -> str:
        """What tells this key from another, 16 hexadecimal digits; the key does not follow from it."""
        return self._hmac("key", b"")[:16]

    def pseudonym(self, path: Sequence[str]) -> str:
        """HMAC-SHA256 of a node's path, its ids from the institution down; 64 hexadecimal digits."""
        return self._hmac("node", json.dumps(list(path), ensure_ascii=False).encode())

    def mac(self, content: bytes) -> str:
        """HMAC-SHA256 of what is written; 64 hexadecimal digits."""
        return self._hmac("entry", content)

    def _hmac(self, use: str, content: bytes) -> str:
        return hmac.new(self._secret, f"chip ledger {use}\n".encode() + content, hashlib.sha256).hexdigest()
