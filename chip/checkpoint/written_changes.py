"""How far a written folder's tensors are from those of the folder that they were made from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.measure import measure
from chip.checkpoint.stored_tensor import same_bytes


def written_changes(source: Checkpoint, folder: Path, edited: Mapping[str, float]) -> Mapping[str, float]:
    """Name on disk -> ‖W′ − W‖ / ‖W‖ (Frobenius), W as the folder of `source` has it, for what is written otherwise.

    Where W is zero, as a bias may be that an adapter brings, it is the largest number: JSON has no infinity.

    Args:
        edited: the same for what the edit changed, measured at what it changed it from: what an adapter had made of W.
    """
    if source.adapter is None:
        return edited
    written = Checkpoint.open(folder)
    pairs = {name: (source.stored(name), written.stored(name)) for name in sorted({*edited, *source.merged})}
    changed = {name: pair for name, pair in pairs.items() if not same_bytes(*pair)}
    changes = {name: measure(*pair, spectrum=False).relative_change for name, pair in changed.items()}
    return {name: min(change, sys.float_info.max) for name, change in changes.items()}
