"""The key of a ledger: it makes pseudonyms of nodes, and shows which entries were written by whoever holds it."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chip.ledger.secret import read_secret

ENVIRONMENT = "CHIP_LEDGER_KEY"
"""Holds the key itself, where no file is given."""


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
        secret = read_secret(file, ENVIRONMENT, "key", "ledger")
        return None if secret is None else cls(secret)

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
