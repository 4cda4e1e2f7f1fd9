"""An entry of a ledger: what happened to which requests, chained to the entry before.

A line is one JSON object. Behind its content stand `mac`, the HMAC of the content by the ledger's key, and `digest`,
the SHA-256 of both. The content holds the digest of the entry before, so that each digest vouches for all above it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from enum import StrEnum
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from chip.ledger.key import LedgerKey

FORMAT = 1
"""Version of the file's format; one with other keys gets another number."""
START = "0" * 64
"""What stands for the digest of the entry before the first."""


class Event(StrEnum):
    """What can happen to a request."""

    RECEIVED = "received"
    EDITED = "edited"
    EVALUATED = "evaluated"
    RELEASED = "released"
    DESTROYED = "destroyed"
    REFUSED = "refused"
    FAILED = "failed"


class Destroyed(StrEnum):
    """What is destroyed once an edited model is released."""

    ORIGINAL = "original"
    RECORDS = "records"


class Action(StrEnum):
    """A command that may fail."""

    EDIT = "edit"
    EVAL = "eval"


@dataclass(frozen=True)
class Received:
    """Somebody asked for one node to be forgotten. All as given; a deadline is a date, `2026-12-31`."""

    event: ClassVar[Event] = Event.RECEIVED
    label: str | None
    basis: str | None
    deadline: str | None


@dataclass(frozen=True)
class Edited:
    """`chip edit` has written a model. A digest of weights is that of `sha256sum *.safetensors` in its folder."""

    event: ClassVar[Event] = Event.EDITED
    source: str
    result: str
    receipt: str
    """SHA-256 of `chip_receipt.json`."""
    method: str
    settings: dict[str, Any]
    figures: dict[str, Any] | None
    """Of the edit's report; None where the entry was made from the receipt."""


@dataclass(frozen=True)
class Evaluated:
    """`chip eval` has asked a model that an edit of this ledger wrote."""

    event: ClassVar[Event] = Event.EVALUATED
    result: str
    """Digest of the weights."""
    reference: str | None
    """The same of the model it was compared with."""
    figures: dict[str, Any]
    """Rows with their 95 % intervals, attacks, seed: see `chip.recording.evaluation_of`."""


@dataclass(frozen=True)
class Released:
    """The edited model is in use, or given out."""

    event: ClassVar[Event] = Event.RELEASED
    result: str


@dataclass(frozen=True)
class WasDestroyed:
    """The model before the edit, with every copy of it, or the records of the request."""

    event: ClassVar[Event] = Event.DESTROYED
    what: str
    """One of `Destroyed`."""
    source: str | None
    """Digest of the weights of the original."""
    note: str | None


@dataclass(frozen=True)
class Refused:
    """The request is answered with no, or was taken back."""

    event: ClassVar[Event] = Event.REFUSED
    reason: str


@dataclass(frozen=True)
class Failed:
    """A run of chip came to nothing. The error's text may name somebody, and is not kept."""

    event: ClassVar[Event] = Event.FAILED
    action: str
    """One of `Action`."""
    error: str
    """Its class: `InputError` where chip refused, `RunError` where the run failed."""


Details = Received | Edited | Evaluated | Released | WasDestroyed | Refused | Failed
_DETAILS: Mapping[Event, type[Details]] = {kind.event: kind for kind in get_args(Details)}


@dataclass(frozen=True)
class Entry:
    """One line of a ledger, in its order."""

    ledger: int
    """Version of the file's format."""
    number: int
    """Counts from 1."""
    time: str
    """When it was written: UTC with its offset, `2026-11-26T07:40:14+00:00`."""
    by: str
    """Who wrote it."""
    chip: str
    """Version of chip."""
    key: str
    """Id of the key that it was written with."""
    event: Event
    requests: tuple[str, ...]
    """Pseudonyms of the nodes."""
    on: str | None
    """The day it happened, where that is another than the day of writing."""
    details: Details
    previous: str
    """Digest of the entry before."""
    mac: str = ""
    digest: str = ""

    @property
    def day(self) -> str:
        """The day it happened, `2026-11-26`: as given, else the day of writing in UTC."""
        return self.on or self.time[:10]

    def signed(self, key: LedgerKey) -> Entry:
        """The same with `mac` and `digest`."""
        signed = replace(self, mac=key.mac(self.content))
        return replace(signed, digest=signed.own_digest)

    @property
    def content(self) -> bytes:
        """What the key vouches for."""
        return _json(self._without("mac", "digest"))

    @property
    def own_digest(self) -> str:
        """What `digest` is to be."""
        return hashlib.sha256(_json(self._without("digest"))).hexdigest()

    @property
    def line(self) -> bytes:
        """As stored, without the end of the line."""
        return _json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As stored."""
        return {**vars(self), "details": vars(self.details)}

    def _without(self, *names: str) -> dict[str, Any]:
        return {name: value for name, value in self.to_json().items() if name not in names}

    @classmethod
    def parse(cls, line: bytes) -> Entry:
        """The entry in a line, whatever its digest. Raises `ValueError` where it is not as chip writes it."""
        try:
            content = json.loads(line)
            event = Event(content["event"])
            details = _DETAILS[event](**content["details"])
            entry = cls(**{**content, "event": event, "details": details, "requests": tuple(content["requests"])})
            _check_types(entry)
            _check_types(details)
            _check_dates(entry)
        except (TypeError, LookupError, AttributeError, RecursionError) as error:  # JSON, but of another form
            raise ValueError(str(error)) from error
        if entry.ledger != FORMAT or entry.line != line:
            raise ValueError("not byte for byte as chip writes it")
        return entry


def _check_types(part: Entry | Details) -> None:
    """Raise `TypeError` where a field is not of the type it is declared with."""
    for name, kind in _TYPES[type(part)].items():
        value = getattr(part, name)
        kinds = [get_origin(one) or one for one in (get_args(kind) if isinstance(kind, UnionType) else (kind,))]
        if isinstance(value, bool) or not isinstance(value, tuple(kinds)):
            raise TypeError(name)
        if isinstance(value, tuple) and not (value and all(isinstance(one, str) for one in value)):
            raise TypeError(name)


_TYPES: Mapping[type[Any], Mapping[str, Any]] = {
    part: {name: kind for name, kind in get_type_hints(part).items() if get_origin(kind) is not ClassVar}
    for part in (Entry, *get_args(Details))
}


def _check_dates(entry: Entry) -> None:
    """Raise `ValueError` where a time, a date or a word of a list is none."""
    if datetime.fromisoformat(entry.time).utcoffset() is None:
        raise ValueError("time")
    if entry.on is not None:
        date.fromisoformat(entry.on)
    match entry.details:
        case Received(deadline=str(deadline)):
            date.fromisoformat(deadline)
        case WasDestroyed(what=what):
            Destroyed(what)
        case Failed(action=action):
            Action(action)


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
