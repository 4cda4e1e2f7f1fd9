"""What became of each request: which event may follow which, and what is still to be done by when.

    received -> edited -> evaluated -> released -> done, once the original and the records are destroyed

Refused ends a request that is not released yet; failed changes nothing.

The collection window ends with a release: until then, all open requests are edited together from the same source.
After it they are edited from the model that was released, as its original is to be destroyed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from enum import StrEnum
from typing import Any

from chip.ledger.entry import (
    Destroyed,
    Details,
    Edited,
    Entry,
    Evaluated,
    Event,
    Failed,
    Received,
    Refused,
    Released,
    WasDestroyed,
)


class State(StrEnum):
    """Where a request stands."""

    RECEIVED = "received"
    EDITED = "edited"
    EVALUATED = "evaluated"
    RELEASED = "released"
    DONE = "done"
    REFUSED = "refused"


CLOSED = (State.DONE, State.REFUSED)
IN_WINDOW = (State.RECEIVED, State.EDITED, State.EVALUATED)
"""Of requests that an edit of all that is open forgets."""

ALLOWED: Mapping[Event, tuple[State, ...]] = {
    Event.RECEIVED: CLOSED,
    Event.EDITED: (*IN_WINDOW, State.RELEASED),
    Event.EVALUATED: (State.EDITED, State.EVALUATED, State.RELEASED),
    Event.RELEASED: (State.EVALUATED,),
    Event.DESTROYED: (State.RELEASED,),
    Event.REFUSED: IN_WINDOW,
    Event.FAILED: (*IN_WINDOW, State.RELEASED),
}
"""Event -> the states it may follow. What was never received, or is closed, can be received."""

_NEXT = {State.RECEIVED: "edit", State.EDITED: "evaluate", State.EVALUATED: "release"}


@dataclass(frozen=True)
class Request:
    """One request, as the entries so far leave it. Digests are of weights."""

    pseudonym: str
    label: str | None
    basis: str | None
    deadline: date | None
    received: date
    state: State = State.RECEIVED
    source: str | None = None
    """Of the last edit; None before it."""
    result: str | None = None
    destroyed: frozenset[str] = frozenset()
    entries: tuple[int, ...] = ()
    """Numbers of its entries."""

    @property
    def is_open(self) -> bool:
        return self.state not in CLOSED

    @property
    def next_step(self) -> str | None:
        """What is to be done next; None where nothing is."""
        if self.state is State.RELEASED:
            return f"destroy the {' and the '.join(what for what in Destroyed if what not in self.destroyed)}"
        return _NEXT.get(self.state)

    def to_json(self, today: date | None = None) -> dict[str, Any]:
        """With the days that are left, where it is given what day it is."""
        return {
            "request": self.pseudonym,
            "label": self.label,
            "basis": self.basis,
            "received": self.received.isoformat(),
            "deadline": None if self.deadline is None else self.deadline.isoformat(),
            "state": self.state,
            "next": self.next_step,
            "source": self.source,
            "result": self.result,
            "destroyed": sorted(self.destroyed),
            "entries": list(self.entries),
            **({} if today is None else {"days_left": self.days_left(today)}),
        }

    def days_left(self, today: date) -> int | None:
        """Until the deadline, which itself still counts; below 0 once it is over. None without one."""
        return None if self.deadline is None else (self.deadline - today).days


@dataclass
class History:
    """All requests of a ledger."""

    requests: dict[str, Request] = field(default_factory=dict)
    """By pseudonym; of those that came twice, the later one."""
    results: set[str] = field(default_factory=set)
    """Digests of the weights that edits wrote."""
    window_source: str | None = None
    """Digest of the weights that open requests are edited from; None: of any model, as nothing was edited yet."""
    _window_edited: bool = False

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> tuple[History, tuple[str, ...]]:
        """What the entries leave, and what in them could not happen."""
        history, faults = cls(), []
        for entry in entries:
            faults += [f"entry {entry.number}: {fault}" for fault in history.objections(entry.requests, entry.details)]
            history._apply(entry)
        return history, tuple(faults)

    def objections(self, pseudonyms: Sequence[str], details: Details) -> Iterator[str]:
        """Why something cannot have happened to these requests; nothing where it can."""
        for pseudonym in pseudonyms:
            request = self.requests.get(pseudonym)
            if why := _objection(request, details):
                yield f"request {short(pseudonym)} {why}"
        if isinstance(details, Evaluated) and details.result not in self.results:
            yield "no edit in this ledger wrote the model that was evaluated"

    def opened(self, *states: State) -> list[Request]:
        """Open requests by their deadline, those without one last; of these states only, where some are given."""
        opened = (request for request in self.requests.values() if request.is_open)
        selected = [request for request in opened if not states or request.state in states]
        return sorted(selected, key=lambda one: (one.deadline or date.max, one.received, one.pseudonym))

    def _apply(self, entry: Entry) -> None:
        details = entry.details
        for pseudonym in entry.requests:
            request = _after(self.requests.get(pseudonym), pseudonym, entry)
            if request is not None:
                self.requests[pseudonym] = replace(request, entries=(*request.entries, entry.number))
        if isinstance(details, Edited):
            self.results.add(details.result)
            if not self._window_edited:
                self.window_source, self._window_edited = details.source, True
        elif isinstance(details, Released):
            self.window_source, self._window_edited = details.result, False


def short(pseudonym: str) -> str:
    """As people read it."""
    return pseudonym[:12]


def _objection(request: Request | None, details: Details) -> str | None:
    if request is None:
        return None if isinstance(details, Received) else "was never received; `chip ledger add received` comes first"
    if request.state not in ALLOWED[details.event]:
        if isinstance(details, Received):
            return "is open already"
        return f"is {request.state}, and cannot be {details.event}: {_hint(details.event)}"
    match details:
        case Edited() if Destroyed.RECORDS in request.destroyed:
            return "cannot be edited again: its records are destroyed"
        case Released(result=result) if result != request.result:
            return "was edited in another model than the one released"
        case WasDestroyed(what=what) if what in request.destroyed:
            return f"has its {what} destroyed already"
        case WasDestroyed(what=Destroyed.ORIGINAL, source=source) if source != request.source:
            return "was edited from another model than the one destroyed"
    return None


def _hint(event: Event) -> str:
    states = ALLOWED[event]
    return f"that follows {' or '.join(states)}" if event is not Event.REFUSED else "a release is not taken back"


def _after(request: Request | None, pseudonym: str, entry: Entry) -> Request | None:
    """The request once this has happened; what is no request stays none."""
    details = entry.details
    if isinstance(details, Received):
        deadline = None if details.deadline is None else date.fromisoformat(details.deadline)
        day = date.fromisoformat(entry.day)
        return Request(pseudonym, details.label, details.basis, deadline, day)
    if request is None or isinstance(details, Failed):
        return request
    match details:
        case Edited(source=source, result=result):
            return replace(request, state=State.EDITED, source=source, result=result, destroyed=frozenset())
        case Evaluated(result=result) if request.state is State.EDITED and result == request.result:
            return replace(request, state=State.EVALUATED)
        case Released():
            return replace(request, state=State.RELEASED)
        case WasDestroyed(what=what):
            destroyed = request.destroyed | {what}
            done = destroyed == set(Destroyed)
            return replace(request, destroyed=destroyed, state=State.DONE if done else request.state)
        case Refused():
            return replace(request, state=State.REFUSED)
    return request
