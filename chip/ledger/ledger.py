"""A ledger: read, checked, and added to."""

from __future__ import annotations

import getpass
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from chip._version import __version__
from chip.errors import ChipWarning, InputError, RunError
from chip.ledger.chain import Chain, head_text
from chip.ledger.entry import FORMAT, Details, Entry
from chip.ledger.file import LedgerFile, Stored
from chip.ledger.key import ENVIRONMENT, LedgerKey
from chip.ledger.place import check_outside_models
from chip.ledger.requests import History, Request

_FEWEST_DIGITS = 6  # of a pseudonym that is cut short
_LONGEST_TEXT = 500  # characters

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Contents:
    """What a ledger holds."""

    chain: Chain
    history: History
    faults: tuple[str, ...]
    """Of the chain, and what in it could not happen."""

    def to_json(self, request: Request | None = None) -> dict[str, Any]:
        """All of it, or of one request only its entries."""
        entries = (entry for entry in self.chain.entries if request is None or request.pseudonym in entry.requests)
        requests = self.history.requests.values() if request is None else [request]
        return {
            "requests": [one.to_json() for one in requests],
            "entries": [entry.to_json() for entry in entries],
            "head": self.chain.head,
            "faults": list(self.faults),
            "notes": list(self.chain.notes),
        }

    def find(self, prefix: str) -> Request:
        """The request whose pseudonym begins like this.

        Raises:
            InputError: none does, several do, or fewer than 6 digits are given.
        """
        matches = [request for request in self.history.requests.values() if request.pseudonym.startswith(prefix)]
        if len(prefix) < _FEWEST_DIGITS or len(matches) > 1:
            raise InputError("give more digits of the pseudonym", argument="request", value=prefix)
        if not matches:
            message = "no request has a pseudonym that begins so; `chip ledger show` lists them"
            raise InputError(message, argument="request", value=prefix)
        return matches[0]


class Ledger:
    """A file of requests, and what became of them.

    Args:
        path: the file; it need not exist yet. It lies in no model's folder.
        key: without it the ledger can be read and no more.
        by: who adds entries; by default the user of this machine.
    """

    def __init__(
        self,
        path: Path | str,
        key: LedgerKey | None = None,
        *,
        by: str | None = None,
        clock: Clock = lambda: datetime.now(UTC),
    ) -> None:
        self._file = LedgerFile(Path(path))
        self.key, self._by, self._clock = key, by, clock

    @property
    def path(self) -> Path:
        return self._file.path

    def require_key(self) -> LedgerKey:
        """The key. Raises `InputError` where there is none."""
        if self.key is None:
            message = f"{self.path}: a ledger's key is needed for this; give its file, or set {ENVIRONMENT}"
            raise InputError(message)
        return self.key

    def read(self) -> Contents:
        """Read and check all of it.

        Raises:
            InputError: it does not exist or cannot be read. Faults are no error here.
        """
        if not self._file.exists():
            raise InputError(f"{self.path}: no such ledger; `chip ledger add` begins one")
        return self._contents(self._file.read())

    def read_sound(self) -> Contents:
        """The same, or an empty one where it does not exist yet.

        Raises:
            InputError: as `read`, and where it has a fault: nobody builds on a ledger that was changed.
        """
        return self._sound(self._file.read())

    def _sound(self, stored: Stored) -> Contents:
        contents = self._contents(stored)
        if contents.faults:
            more = f" (and {len(contents.faults) - 1} more)" if len(contents.faults) > 1 else ""
            hint = "`chip ledger verify` tells all; give its own key, or put the last good copy back"
            raise InputError(f"{self.path}: {contents.faults[0]}{more}; {hint}")
        return contents

    def check(self, pseudonyms: Sequence[str], details: Details) -> None:
        """Raise `InputError` where `add` would."""
        check_outside_models(self.path, "ledger")
        self.require_key()
        _check_possible(self.read_sound(), self.path, pseudonyms, details)

    def add(self, pseudonyms: Sequence[str], details: Details, *, on: date | None = None) -> Entry:
        """Add an entry, and have the disk hold it.

        What a former writer left in the middle of a line is put into a file of its own, which is said.

        Args:
            pseudonyms: of the nodes, `LedgerKey.pseudonym`.
            on: the day it happened, where that is not today.

        Raises:
            InputError: it cannot have happened now (`History.objections`), there is no key or another one, the ledger
                has a fault, or lies in a model's folder.
            RunError: it cannot be written. Nothing has been added.
        """
        check_outside_models(self.path, "ledger")
        key = self.require_key()
        with self._file.locked() as stored:
            contents = self._sound(stored)
            _check_possible(contents, self.path, pseudonyms, details)
            self._mend_tail(contents.chain, stored.tail)
            entry = self._entry(contents.chain, pseudonyms, details, on).signed(key)
            self._file.append(entry.line)
            try:
                self._file.write_head(head_text(entry, key))
            except RunError as error:  # the next writer does
                warnings.warn(f"the entry is added, and its head is not: {error}", ChipWarning, stacklevel=2)
        return entry

    def _contents(self, stored: Stored) -> Contents:
        chain = Chain.of(stored, self.key)
        history, faults = History.of(chain.entries)
        return Contents(chain, history, (*chain.faults, *(() if chain.faults else faults)))

    def _mend_tail(self, chain: Chain, tail: bytes) -> None:
        """Have the file end with a whole line."""
        if chain.unfinished:
            self._file.finish_line()
        elif tail:
            torn = self._file.put_torn_aside(tail)
            message = f"{self.path}: a writer died in the middle of the last line; what it had written is in {torn}"
            warnings.warn(message, ChipWarning, stacklevel=3)

    def _entry(self, chain: Chain, pseudonyms: Sequence[str], details: Details, on: date | None) -> Entry:
        return Entry(
            ledger=FORMAT,
            number=chain.entries[-1].number + 1 if chain.entries else 1,
            time=self._clock().astimezone(UTC).isoformat(timespec="seconds"),
            by=_user() if self._by is None else checked_text("by", self._by),
            chip=__version__,
            key=self.require_key().id,
            event=details.event,
            requests=tuple(pseudonyms),
            on=None if on is None else on.isoformat(),
            details=details,
            previous=chain.head,
        )


def checked_text(argument: str, text: str) -> str:
    """A text that a person gives. Raises `InputError` where it is empty, too long or cannot be shown."""
    if not text.strip() or len(text) > _LONGEST_TEXT or not text.isprintable():
        message = f"give one line of 1 to {_LONGEST_TEXT} characters that can be shown"
        raise InputError(message, argument=argument, value=text[:_LONGEST_TEXT])
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:  # in a container, a number without a name
        raise InputError("this machine's user has no name; say who adds the entry", argument="by") from error


def _check_possible(contents: Contents, path: Path, pseudonyms: Sequence[str], details: Details) -> None:
    if objection := next(contents.history.objections(pseudonyms, details), None):
        raise InputError(f"{path}: {objection}")
