"""A checkpoint as numbers, also where they are stored as codes."""

from __future__ import annotations

from pathlib import Path

from chip.checkpoint.config_checks import find_scheme
from chip.checkpoint.layout import Checkpoint
from chip.progress import ProgressCallback, silent


def open_plain(folder: Path, progress: ProgressCallback = silent) -> Checkpoint:
    """The checkpoint in a folder; of a quantized one a dequantized copy, in a temporary folder.

    Raises:
        InputError: as `Checkpoint.open` and `chip.model.dequantization.dequantize` do.
    """
    checkpoint = Checkpoint.open(folder, quantized=True)
    if find_scheme(checkpoint.config) is None:
        return checkpoint
    from chip.model.dequantization import dequantize  # brings transformers

    return dequantize(checkpoint, progress)
