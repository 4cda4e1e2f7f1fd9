"""The file of a guard: what a sequence of edits has taken out, encrypted with the operator's key.

It is personal data, and lies outside of every model's folder. A line says what it is and by which key; a nonce and the
ciphertext follow (AES-256-GCM, the key by HKDF-SHA256), of tensors in the safetensors format. In it are two states: of
the weights that were edited last, so that they can be edited again in place of that, and of what came of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from safetensors.torch import load, save
from torch import Tensor

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.receipt import read_receipt
from chip.edit_options import EditOptions
from chip.errors import InputError, RunError, one_line
from chip.ledger.file import write_whole
from chip.ledger.place import check_outside_models
from chip.ledger.secret import read_secret
from chip.methods import Method
from chip.methods.guard import Guard, check_guarded
from chip.progress import ProgressCallback
from chip.recording.weights import result_digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ENVIRONMENT = "CHIP_GUARD_KEY"
"""Holds the key itself, where no file is given."""
_MAGIC = b"chip guard 1 "
_NONCE = 12  # bytes, as NIST SP 800-38D recommends
_ID = 16


@dataclass(frozen=True)
class GuardFile:
    """A guard that an edit goes by, and where the next one's is written."""

    path: Path
    guard: Guard
    """Of the weights that are edited; empty where none of a sequence came before."""
    _key: GuardKey
    _digest: str
    """Of those weights."""

    @classmethod
    def open(
        cls, source: Checkpoint, output: Path, options: EditOptions, progress: ProgressCallback, method: Method
    ) -> Self | None:
        """What the options ask for; None where they ask for none.

        Raises:
            InputError: the file or its key cannot be used, lies in a model's folder, or is of other weights; the method
                has no use for it.
        """
        given, key_file = options.get("guard"), options.get("guard_key")
        if given is None:
            if key_file is not None:
                raise InputError("goes with guard", argument="guard_key", value=key_file)
            return None
        check_guarded(method)
        path = Path(given)
        if options.get("save", "merged") != "merged":
            raise InputError("goes with save=merged; an adapter can be taken off", argument="guard", value=given)
        check_outside_models(path, "guard", source.given, output)
        if not path.resolve().parent.is_dir():
            raise InputError("there is no such folder; make it, or choose another", argument="guard", value=given)
        key = GuardKey.read(None if key_file is None else Path(key_file))
        digest = result_digest(source, progress)
        states = _states(path, key) if path.exists() else {digest: {}}
        if digest not in states:
            message = "is of the edits of another model; give the guard of this one, or the model that it belongs to"
            raise InputError(message, argument="guard", value=given)
        return cls(path, Guard(states[digest]), key, digest)

    def write(self, folder: Path, taken: Mapping[str, Tensor]) -> None:
        """Replace the file, once the edited checkpoint in the folder has its receipt.

        Args:
            taken: `Patch.guard` of the edit.

        Raises:
            RunError: the file system refuses; then it is as it was.
        """
        states = {self._digest: self.guard.factors, read_receipt(folder).result_digest: {**self.guard.factors, **taken}}
        content = {f"{digest}/": torch.empty(0) for digest in states}  # a state may hold nothing
        for digest, factors in states.items():
            content |= {f"{digest}/{module}": factor.clone() for module, factor in factors.items()}  # no name shares
        try:
            write_whole(self.path.resolve(), self._key.encrypt(save(content)))
        except OSError as error:
            message = f"{self.path}: the guard cannot be written ({one_line(error)}); nothing of the edit is left"
            raise RunError(message) from error


@dataclass(frozen=True)
class GuardKey:
    """What a guard is encrypted with. Its `repr` does not show it."""

    _secret: bytes = field(repr=False)

    @classmethod
    def read(cls, file: Path | None) -> Self:
        """The key in a file, else in the environment variable `CHIP_GUARD_KEY`.

        Raises:
            InputError: there is none, as `read_secret`, or the package that encrypts is missing.
        """
        secret = read_secret(file, ENVIRONMENT, "guard_key", "guard")
        if secret is None:
            message = f"a guard's key is needed for this; give its file, or set {ENVIRONMENT}"
            raise InputError(message, argument="guard_key")
        if find_spec("cryptography") is None:
            message = "a guard needs cryptography; pip install 'chip-unlearning[guard]'"
            raise InputError(message, argument="guard")
        return cls(secret)

    def encrypt(self, content: bytes) -> bytes:
        """With a nonce of its own, so that the same content is never the same file."""
        header, nonce = self._header, os.urandom(_NONCE)
        return header + nonce + self._cipher.encrypt(nonce, content, header)

    def decrypt(self, stored: bytes, path: Path) -> bytes:
        """Raises `InputError` where this is no guard, one of another key, or not as it was written."""
        from cryptography.exceptions import InvalidTag

        header, start = stored[: len(self._header)], len(self._header) + _NONCE
        if not header.startswith(_MAGIC):
            raise InputError("is no guard; check the path", argument="guard", value=path)
        if len(header) == len(self._header) and header != self._header:
            raise InputError("is encrypted with another key; give that one", argument="guard", value=path)
        try:
            return self._cipher.decrypt(stored[len(header) : start], stored[start:], header)
        except (InvalidTag, ValueError) as error:  # the latter where hardly anything is left of it
            message = "is torn or was changed: it is not what was written; take a copy of it"
            raise InputError(message, argument="guard", value=path) from error

    @property
    def _header(self) -> bytes:
        """What kind of file it is, and what tells this key from another."""
        return _MAGIC + self._derived(b"id").hex()[:_ID].encode() + b"\n"

    @property
    def _cipher(self) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(self._derived(b"encryption"))

    def _derived(self, use: bytes) -> bytes:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(SHA256(), 32, None, b"chip guard " + use).derive(self._secret)


def _states(path: Path, key: GuardKey) -> dict[str, dict[str, Tensor]]:
    """Digest of weights -> factors by module."""
    if not path.is_file():
        raise InputError("is no guard, but a folder or a device; check the path", argument="guard", value=path)
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({one_line(error)}); check the path", argument="guard", value=path) from error
    states: dict[str, dict[str, Tensor]] = {}
    for name, factor in load(key.decrypt(stored, path)).items():
        digest, _, module = name.partition("/")
        state = states.setdefault(digest, {})
        if module:
            state[module] = factor
    return states
