"""Whether a ledger is as it was written: each line by itself, the chain, the key, and the end."""

from __future__ import annotations

import hmac
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chip.errors import printable
from chip.ledger.entry import START, Entry
from chip.ledger.file import Stored
from chip.ledger.key import LedgerKey


@dataclass(frozen=True)
class Chain:
    """The entries of a ledger, and what is wrong with it."""

    entries: tuple[Entry, ...]
    """Those that can be read."""
    faults: tuple[str, ...]
    """One line each; none: the ledger is as it was written, as far as that can be told."""
    notes: tuple[str, ...]
    """What is no fault, and worth knowing."""
    unfinished: bool
    """Whether the last entry lacks the end of its line."""

    @property
    def head(self) -> str:
        """Digest of the last entry: vouches for all of them."""
        return self.entries[-1].digest if self.entries else START

    @classmethod
    def of(cls, stored: Stored, key: LedgerKey | None = None) -> Chain:
        """Check what the files hold; with a key also who wrote it."""
        lines, notes = list(stored.lines), []
        unfinished = bool(stored.tail) and _is_whole(stored.tail)
        if unfinished:
            lines.append(stored.tail)
        elif stored.tail:
            notes.append(
                f"the last line is torn: its writer died in the middle of it; the next one keeps its "
                f"{len(stored.tail):,} bytes aside"
            )
        read = [_read(line) for line in lines]
        entries = tuple(entry for entry in read if entry is not None)
        faults = [*_line_faults(read), *_key_faults(entries, key), *_head_faults(entries, stored.head, key)]
        notes += [f"{name} holds a line whose writer died in the middle of it" for name in stored.torn]
        notes += _time_notes(entries)
        if stored.head is None and entries:
            notes.append("there is no .head file beside it: that entries were cut off at the end would not show")
        return cls(entries, tuple(faults), tuple(notes), unfinished)


def head_text(entry: Entry, key: LedgerKey) -> bytes:
    """What the file beside the ledger holds when `entry` is the last one."""
    content = {"number": entry.number, "digest": entry.digest}
    mac = key.mac(json.dumps(content).encode())
    return json.dumps({**content, "mac": mac}).encode() + b"\n"


def _is_whole(line: bytes) -> bool:
    entry = _read(line)
    return entry is not None and entry.digest == entry.own_digest


def _read(line: bytes) -> Entry | None:
    try:
        return Entry.parse(line)
    except ValueError:
        return None


def _line_faults(read: Sequence[Entry | None]) -> Iterator[str]:
    """What each line shows by itself, and beside the one above it."""
    present = {entry.number for entry in read if entry is not None}
    above: Entry | None = None
    seen: set[int] = set()
    number, known = 0, True  # of the line above, and whether it is what the next one was written after
    for line, entry in enumerate(read, 1):
        number += 1
        if entry is None:
            yield f"line {line}: no entry as chip writes it, damaged or changed by hand"
            known = False
            continue
        if entry.digest != entry.own_digest:
            yield f"line {line}: entry {entry.number} has been changed: its digest is another"
        if entry.number != number:
            yield f"line {line}: {_out_of_order(entry.number, number, present, seen)}"
        elif known and entry.previous != (above.digest if above else START):
            yield f"line {line}: entry {number} was written after another entry {number - 1} than the one above it"
        known = entry.number == number
        number = entry.number if entry.number > number or entry.number in seen else number
        above = entry
        seen.add(entry.number)


def _out_of_order(found: int, expected: int, present: Collection[int], seen: Collection[int]) -> str:
    if found in seen:
        return f"entry {found} is there again"
    if found < expected or expected in present:
        return f"entry {found} stands where entry {expected} belongs"
    next_present = min(number for number in present if number > expected)
    return f"entry {found} follows entry {expected - 1}: {_are(expected, next_present - 1)} missing"


def _are(first: int, last: int) -> str:
    return f"entry {last} is" if first == last else f"entries {first} to {last} are"


def _key_faults(entries: Sequence[Entry], key: LedgerKey | None) -> Iterator[str]:
    """By whom the entries were written: all by one key, and, where it is given, by that one."""
    first = key.id if key is not None else entries[0].key if entries else ""
    whose = "than the one given" if key is not None else "than the first"
    for entry in entries:
        if entry.key != first:
            yield f"entry {entry.number} was written with another key ({printable(entry.key)}) {whose} ({first})"
        elif key is not None and not hmac.compare_digest(key.mac(entry.content).encode(), entry.mac.encode()):
            yield f"entry {entry.number} was not written by whoever holds the key: its HMAC is another"


def _head_faults(entries: Sequence[Entry], head: bytes | None, key: LedgerKey | None) -> Iterator[str]:
    """Whether the last entry that a writer knew is there. One that died may have added one more."""
    if head is None:
        return
    try:
        content = json.loads(head)
        number, digest, mac = int(content["number"]), str(content["digest"]), str(content["mac"]).encode()
    except (ValueError, TypeError, LookupError, RecursionError):
        yield "the .head file beside it is damaged"
        return
    text = json.dumps({"number": number, "digest": digest}).encode()
    if key is not None and not hmac.compare_digest(key.mac(text).encode(), mac):
        yield "the .head file beside it was not written by whoever holds the key"
    last = entries[-1].number if entries else 0
    if last < number:
        yield f"it ends with entry {last}, and a writer knew entry {number}: {_are(last + 1, number)} cut off"
    elif all(entry.digest != digest for entry in entries):
        yield f"entry {number} is not the one that its writer knew: the .head file has another digest"


def _time_notes(entries: Sequence[Entry]) -> Iterator[str]:
    for before, entry in pairwise(entries):
        if entry.time < before.time:
            yield f"entry {entry.number} is dated before entry {before.number}: a clock was wrong"
