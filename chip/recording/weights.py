"""What an edit did to the weights, as a ledger records it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chip.checkpoint.hashing import digest
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.receipt import RECEIPT, read_receipt
from chip.checkpoint.weights import combined_digest, weights_digest
from chip.errors import InputError
from chip.ledger.entry import Edited
from chip.progress import ProgressCallback, silent


def result_digest(model: Checkpoint, progress: ProgressCallback = silent) -> str:
    """`Receipt.result_digest` of the edit that wrote the model: of an adapter's own files where one is merged."""
    return weights_digest(model, progress) if model.adapter is None else combined_digest(model.adapter.digests())


def edited_as_receipt_says(folder: Path, figures: Mapping[str, object] | None) -> Edited:
    """What an edit did, by the receipt in the folder that it wrote: its hashes were taken from the disk.

    Raises:
        InputError: as `read_receipt`, or the receipt has no hash of the source's weights.
    """
    receipt = read_receipt(folder)
    if (name := receipt.without_source) is not None:
        raise InputError(f"{RECEIPT}: {name} has no hash of the source; edit with this version of chip")
    return Edited(
        source=receipt.source_digest,
        result=receipt.result_digest,
        receipt=digest(folder / RECEIPT).whole,
        method=receipt.method,
        settings=receipt.settings,
        figures=None if figures is None else dict(figures),
    )
