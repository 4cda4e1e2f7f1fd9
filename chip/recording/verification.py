"""Whether a ledger is as it was written, beside what else is known of it: a head noted earlier, folders it tells of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip.checkpoint.receipt import RECEIPT, read_receipt
from chip.errors import InputError
from chip.ledger import Ledger
from chip.ledger.entry import START, Edited, Entry
from chip.ledger.requests import short

_FEWEST_DIGITS = 12  # of a head that is cut short


@dataclass(frozen=True)
class LedgerVerification:
    """What `chip ledger verify` found."""

    entries: int
    head: str
    """Digest of the last entry. Noted elsewhere, it shows later whether anything up to here was changed or cut off."""
    with_key: bool
    """Whether it was checked who wrote the entries: without the key, whoever rewrote all of them goes unnoticed."""
    anchored: bool
    """Whether something from outside was there to compare with: an earlier head, or a receipt."""
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"good": not self.faults, **vars(self)}


def verify_ledger(ledger: Ledger, *, head: str | None = None, edited: Sequence[Path] = ()) -> LedgerVerification:
    """Check every line, the chain, the states, and with the ledger's key who wrote it.

    Args:
        head: a digest that was printed earlier, or its first 12 digits or more.
        edited: folders that `chip edit --ledger` has written: each one's receipt must be in an entry as it is now.

    Raises:
        InputError: there is no such ledger, or the head is none.
    """
    contents = ledger.read()
    chain = contents.chain
    faults = list(contents.faults)
    if head is not None:
        faults += _head_faults(chain.entries, head)
    for folder in edited:
        faults += _receipt_faults(chain.entries, folder)
    return LedgerVerification(
        len(chain.entries), chain.head, ledger.key is not None, bool(head or edited), tuple(faults), chain.notes
    )


def _head_faults(entries: Sequence[Entry], head: str) -> Iterator[str]:
    if len(head) < _FEWEST_DIGITS or set(head) - set("0123456789abcdef"):
        raise InputError(f"give {_FEWEST_DIGITS} to {len(START)} hexadecimal digits", argument="head", value=head)
    if not any(digest.startswith(head) for digest in (START, *(entry.digest for entry in entries))):
        yield f"no entry has the digest {short(head)}: what was there then has been changed, or cut off"


def _receipt_faults(entries: Sequence[Entry], folder: Path) -> Iterator[str]:
    try:
        read_receipt(folder)
    except InputError as error:
        yield str(error)
        return
    digest = hashlib.sha256((folder / RECEIPT).read_bytes()).hexdigest()
    known = {entry.details.receipt for entry in entries if isinstance(entry.details, Edited)}
    if digest not in known:
        yield f"{folder}: no entry tells of the receipt in it: it is another, or its entry was cut off"
