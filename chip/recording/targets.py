"""Which nodes the open requests of a ledger ask about: by hashing the records' nodes with its key."""

from __future__ import annotations

from collections.abc import Sequence

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.weights import weights_digest
from chip.data.hierarchy import Hierarchy
from chip.errors import InputError
from chip.ledger import Ledger
from chip.ledger.requests import IN_WINDOW, Request, State, short
from chip.progress import ProgressCallback, silent
from chip.recording.weights import result_digest


def open_targets(
    ledger: Ledger | None, source: Checkpoint, hierarchy: Hierarchy, progress: ProgressCallback = silent
) -> list[str]:
    """Paths of all nodes whose requests are open in the collection window, for `edit`: one edit forgets them together.

    Args:
        source: the window's, all of whose weights are hashed where an edit or a release has set it.

    Raises:
        InputError: there is no ledger; nothing is open; the hierarchy holds no node of an open request; the source is
            another than the one that this window's edits were made from, or than the one released since.
    """
    ledger = _given(ledger)
    history = ledger.read_sound().history
    opened = history.opened(*IN_WINDOW)
    if not opened:
        raise InputError("no request waits for an edit; `chip ledger due` shows what is open", argument="open")
    targets = _nodes_of(ledger, opened, hierarchy)
    if history.window_source is not None and weights_digest(source, progress) != history.window_source:
        what = f"whose weights have the digest {short(history.window_source)}..."
        message = f"is not the model that the open requests are to be edited from, {what}; give that one"
        raise InputError(message, argument="checkpoint", value=source.folder)
    return targets


def edited_targets(
    ledger: Ledger | None, model: Checkpoint, hierarchy: Hierarchy, progress: ProgressCallback = silent
) -> list[str]:
    """Paths of all nodes that were edited into this model and wait for its release, for `evaluate`.

    Args:
        model: the edited one, all of whose weights are hashed.

    Raises:
        InputError: there is no ledger, or no such node; the hierarchy holds no node of a request.
    """
    ledger = _given(ledger)
    result = result_digest(model, progress)
    waiting = ledger.read_sound().history.opened(State.EDITED, State.EVALUATED)
    requests = [request for request in waiting if request.result == result]
    if not requests:
        message = "no request that waits for a release was edited into this model"
        raise InputError(message, argument="checkpoint", value=model.place)
    return _nodes_of(ledger, requests, hierarchy)


def _given(ledger: Ledger | None) -> Ledger:
    if ledger is None:
        raise InputError("name a node, or give the ledger whose open requests are meant", argument="forget")
    return ledger


def _nodes_of(ledger: Ledger, requests: Sequence[Request], hierarchy: Hierarchy) -> list[str]:
    """Paths of the requests' nodes. Raises `InputError` where the hierarchy lacks one."""
    key = ledger.require_key()
    nodes = {key.pseudonym(node.path): str(node) for node in hierarchy.nodes}
    lacking = [short(request.pseudonym) for request in requests if request.pseudonym not in nodes]
    if lacking:
        hint = "give the records that do, or refuse the request in the ledger"
        raise InputError(f"the records hold no node of request {', '.join(lacking)}; {hint}")
    return [nodes[request.pseudonym] for request in requests]
