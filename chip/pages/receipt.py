"""The receipt that a folder holds, for a page that shows something of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chip.checkpoint.receipt import RECEIPT


def receipt_in(folder: Path) -> Mapping[str, Any] | None:
    """The receipt in a folder: None where there is none, empty where it cannot be read."""
    file = folder / RECEIPT
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):  # a page about the weights need not fail for it
        return {}
    return content if isinstance(content, dict) else {}
