"""What a plain checkpoint was dequantized from."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

from chip.checkpoint.layout import Checkpoint


class TemporaryFolder:
    """A folder that is removed with this object, or with the process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="chip-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class Quantized:
    """A quantized checkpoint, and its dequantized copy."""

    checkpoint: Checkpoint
    """As it is on the disk: codes and scales."""
    scheme: str
    """How it is quantized, in words."""
    copy: TemporaryFolder
    """Where the dequantized checkpoint lies, for as long as anybody has it."""
