"""One digest for all weights of a model, as `sha256sum *.safetensors | sha256sum` gives it in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from chip.checkpoint.hashing import digest_all
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.receipt import RECEIPT, Receipt, read_receipt
from chip.errors import InputError
from chip.ledger.entry import Edited
from chip.progress import ProgressCallback, silent

_SHARD = ".safetensors"


def combined_digest(digests: Mapping[str, str]) -> str:
    """SHA-256 of the lines that sha256sum writes of some files, sorted by their names.

    Args:
        digests: name -> SHA-256 of its bytes, in hexadecimal.
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def weights_digest(checkpoint: Checkpoint, progress: ProgressCallback = silent) -> str:
    """The digest of a checkpoint's shards, all of which are read."""
    jobs = [(checkpoint.folder / shard, ()) for shard in checkpoint.shards]
    with progress(f"hashing {checkpoint.folder.name}", len(jobs)) as advance:
        digests = digest_all(jobs, advance)
    return combined_digest({name: one.whole for name, one in zip(checkpoint.shards, digests, strict=True)})


def edited_as_receipt_says(folder: Path, figures: Mapping[str, object] | None) -> Edited:
    """What an edit did, by the receipt in the folder that it wrote: its hashes were taken from the disk.

    Raises:
        InputError: as `read_receipt`, or the receipt has no hash of the source's weights.
    """
    receipt = read_receipt(folder)
    before, after = _shards(receipt)
    return Edited(
        source=combined_digest(before),
        result=combined_digest(after),
        receipt=hashlib.sha256((folder / RECEIPT).read_bytes()).hexdigest(),
        method=receipt.method,
        settings=receipt.settings,
        figures=None if figures is None else dict(figures),
    )


def _shards(receipt: Receipt) -> tuple[dict[str, str], dict[str, str]]:
    """Name -> hash of each file of weights, before and after."""
    before, after = {}, {}
    for name in (name for name in receipt.files if name.endswith(_SHARD)):
        file = receipt.files[name]
        if file.source_sha256 is None:
            raise InputError(f"{RECEIPT}: {name} has no hash of the source; edit with this version of chip")
        before[name], after[name] = file.source_sha256, file.sha256
    return before, after
