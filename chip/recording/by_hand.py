"""Entries that a person adds: a request came in, a model is released, something is destroyed, or the answer is no."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.names import TargetNames
from chip.data.readers import read_records
from chip.data.request import find_node
from chip.errors import InputError
from chip.ledger import Ledger
from chip.ledger.entry import Destroyed, Entry, Received, Refused, Released, WasDestroyed
from chip.ledger.ledger import checked_text
from chip.ledger.requests import Request, State
from chip.progress import ProgressCallback, silent
from chip.recording.runs import pseudonyms_of
from chip.recording.weights import edited_as_receipt_says, weights_digest


def receive(
    ledger: Ledger,
    node: str,
    records: Path | str,
    *,
    label: str | None = None,
    basis: str | None = None,
    deadline: date | None = None,
    on: date | None = None,
) -> Entry:
    """Somebody has asked for a node to be forgotten.

    Args:
        node: its id or path, as in `edit`; the ledger gets its pseudonym.
        records: those that the node occurs in.
        label, basis: what the request is called, and what it rests on. They must not name the node.
        on: the day the request came in, by default today.

    Raises:
        InputError: no such node, the request is open already, a text names the node; and as `Ledger.add`.
    """
    hierarchy = Hierarchy(read_records(Path(records)))
    found = find_node(hierarchy, node)
    names = TargetNames.of(hierarchy, [found])
    for argument, text in (("label", label), ("basis", basis)):
        if text is not None and (name := names.find_in_label(checked_text(argument, text))):
            raise InputError(f"names {name}, which is to be forgotten; choose another", argument=argument, value=text)
    given = None if deadline is None else deadline.isoformat()
    return ledger.add(pseudonyms_of(ledger, [found]), Received(label, basis, given), on=on)


def record_edit(ledger: Ledger, requests: Sequence[str], folder: Path | str) -> Entry:
    """An edit has been written without the ledger: what it did is in the receipt in its folder, but for the figures.

    Args:
        requests: beginnings of the pseudonyms.

    Raises:
        InputError: there is no receipt; and as `Ledger.add`.
    """
    contents = ledger.read()
    pseudonyms = [contents.find(prefix).pseudonym for prefix in requests]
    return ledger.add(list(dict.fromkeys(pseudonyms)), edited_as_receipt_says(Path(folder), None))


def release(
    ledger: Ledger, folder: Path | str, *, on: date | None = None, progress: ProgressCallback = silent
) -> Entry:
    """An edited model is in use, or given out: for all requests that were edited into it.

    Args:
        folder: of the model, all of whose weights are hashed.

    Raises:
        InputError: no open request was edited into it, or one was not evaluated since; and as `Ledger.add`.
    """
    result = weights_digest(Checkpoint.open(Path(folder)), progress)
    waiting = ledger.read().history.opened(State.EDITED, State.EVALUATED)
    pseudonyms = [request.pseudonym for request in waiting if request.result == result]
    if not pseudonyms:
        message = f"{folder}: no request that waits for a release was edited into this model"
        raise InputError(f"{message}; `chip ledger show` lists them")
    return ledger.add(pseudonyms, Released(result), on=on)


def destroy(
    ledger: Ledger, what: Destroyed, requests: Sequence[str], *, note: str | None = None, on: date | None = None
) -> Entry:
    """The original or the records of released requests are destroyed, with every copy.

    An original is that of all requests that were edited from it: the entry names them too.

    Args:
        requests: beginnings of the pseudonyms.
        note: how, and by whom. It must not name anybody who is forgotten, which is not checked.

    Raises:
        InputError: one is not released, or has it destroyed already; their originals differ; and as `Ledger.add`.
    """
    contents = ledger.read()
    found = {request.pseudonym: request for request in map(contents.find, requests)}
    sources = {request.source for request in found.values()}
    source = None
    if what is Destroyed.ORIGINAL:
        if len(sources) > 1:
            raise InputError("they were edited from several models; add one entry for each", argument="request")
        (source,) = sources
        found |= {one.pseudonym: one for one in contents.history.opened(State.RELEASED) if _has_original(one, source)}
    text = None if note is None else checked_text("note", note)
    return ledger.add(list(found), WasDestroyed(what, source, text), on=on)


def _has_original(request: Request, source: str | None) -> bool:
    return request.source == source and Destroyed.ORIGINAL not in request.destroyed


def refuse(ledger: Ledger, requests: Sequence[str], reason: str, *, on: date | None = None) -> Entry:
    """Requests are answered with no, or were taken back.

    Args:
        requests: beginnings of the pseudonyms.
        reason: must not name anybody, which is not checked.

    Raises:
        InputError: one is released or closed already; and as `Ledger.add`.
    """
    contents = ledger.read()
    pseudonyms = dict.fromkeys(contents.find(prefix).pseudonym for prefix in requests)
    return ledger.add(list(pseudonyms), Refused(checked_text("reason", reason)), on=on)
