"""Which nodes the open requests of a ledger ask about: by hashing the records' nodes with its key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.weights import weights_digest
from chip.data.hierarchy import Hierarchy
from chip.data.readers import RecordSource, find_source, read_records
from chip.errors import InputError
from chip.ledger import Ledger
from chip.ledger.requests import IN_WINDOW, Request, State, short
from chip.progress import ProgressCallback, silent


def open_targets(
    ledger: Ledger,
    checkpoint: Path | str,
    records: Path | str | RecordSource | None = None,
    *,
    progress: ProgressCallback = silent,
) -> list[str]:
    """Paths of all nodes whose requests are open in the collection window, for `edit`: one edit forgets them together.

    Args:
        checkpoint: the window's source, all of whose weights are hashed where an edit or a release has set it.
        records: as `edit` has them.

    Raises:
        InputError: nothing is open; the records hold no node of an open request; the checkpoint is another than the
            one that this window's edits were made from, or than the one released since.
    """
    history = ledger.read_sound().history
    opened = history.opened(*IN_WINDOW)
    if not opened:
        raise InputError("no request waits for an edit; `chip ledger due` shows what is open", argument="open")
    source = Checkpoint.open(Path(checkpoint), quantized=True)
    targets = _nodes_of(ledger, opened, source, records)
    if history.window_source is not None and weights_digest(source, progress) != history.window_source:
        what = f"whose weights have the digest {short(history.window_source)}..."
        message = f"is not the model that the open requests are to be edited from, {what}; give that one"
        raise InputError(message, argument="checkpoint", value=checkpoint)
    return targets


def edited_targets(
    ledger: Ledger,
    checkpoint: Path | str,
    records: Path | str | RecordSource | None = None,
    *,
    progress: ProgressCallback = silent,
) -> list[str]:
    """Paths of all nodes that were edited into this model and wait for its release, for `evaluate`.

    Args:
        checkpoint: the edited model, all of whose weights are hashed.
        records: as `evaluate` has them.

    Raises:
        InputError: there is none; the records hold no node of one.
    """
    source = Checkpoint.open(Path(checkpoint))
    result = weights_digest(source, progress)
    waiting = ledger.read_sound().history.opened(State.EDITED, State.EVALUATED)
    requests = [request for request in waiting if request.result == result]
    if not requests:
        message = "no request that waits for a release was edited into this model"
        raise InputError(message, argument="checkpoint", value=checkpoint)
    return _nodes_of(ledger, requests, source, records)


def _nodes_of(
    ledger: Ledger, requests: Sequence[Request], checkpoint: Checkpoint, records: Path | str | RecordSource | None
) -> list[str]:
    """Paths of the requests' nodes. Raises `InputError` where the records lack one."""
    key = ledger.require_key()
    found = find_source(checkpoint.folder, records)
    nodes = {key.pseudonym(node.path): str(node) for node in Hierarchy(read_records(found)).nodes}
    lacking = [short(request.pseudonym) for request in requests if request.pseudonym not in nodes]
    if lacking:
        hint = "give the records that do, or refuse the request in the ledger"
        raise InputError(f"{found.path}: holds no node of request {', '.join(lacking)}; {hint}")
    return [nodes[request.pseudonym] for request in requests]
