"""A ledger for tests: two requests from their receipt to the destruction of the original, and how it is forged."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from chip.ledger import Ledger, LedgerKey
from chip.ledger.entry import START, Destroyed, Details, Edited, Entry, Evaluated, Received, Released, WasDestroyed

KEY = LedgerKey(b"a key of the tests, and of nobody else")
OTHER_KEY = LedgerKey(b"another key, which somebody has made up")
FIRST, SECOND = (KEY.pseudonym(("institution_1", patient)) for patient in ("patient_1", "patient_2"))
SOURCE, RESULT = "5" * 64, "e" * 64
EDITED = Edited(SOURCE, RESULT, "a" * 64, "shielded", {"ridge": 0.1}, {"groups": {}})

STEPS: Sequence[tuple[Sequence[str], Details]] = (
    ([FIRST], Received("case 1", "GDPR Art. 17", "2026-12-24")),
    ([SECOND], Received(None, None, None)),
    ([FIRST, SECOND], EDITED),
    ([FIRST, SECOND], Evaluated(RESULT, None, {"rows": []})),
    ([FIRST, SECOND], Released(RESULT)),
    ([FIRST, SECOND], WasDestroyed(Destroyed.ORIGINAL, SOURCE, None)),
)


def write_ledger(path: Path, steps: Sequence[tuple[Sequence[str], Details]] = STEPS, key: LedgerKey = KEY) -> Ledger:
    """A new ledger with these entries."""
    ledger = Ledger(path, key, by="tester")
    for pseudonyms, details in steps:
        ledger.add(pseudonyms, details)
    return ledger


def head_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def chained(path: Path, key: LedgerKey, change: Callable[[Entry], Entry] = lambda entry: entry) -> None:
    """Write all entries of a ledger anew, changed and chained by whoever has that key; the id of the old one stays."""
    digest, lines = START, []
    for line in lines_of(path):
        entry = replace(change(Entry.parse(line.rstrip(b"\n"))), previous=digest).signed(key)
        digest = entry.digest
        lines.append(entry.line + b"\n")
    path.write_bytes(b"".join(lines))


def forge_head(path: Path) -> None:
    """Have the file beside a ledger say that its last entry is the last; its HMAC is made up."""
    last = Entry.parse(lines_of(path)[-1].rstrip(b"\n"))
    content = {"number": last.number, "digest": last.digest, "mac": "0" * 64}
    head_file(path).write_bytes(json.dumps(content).encode() + b"\n")
