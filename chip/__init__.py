"""Forget a patient, a study, a section or an institution in a vision-language checkpoint, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chip._version import __version__
from chip.errors import ChipError, InputError, RunError

if TYPE_CHECKING:
    from chip.checkpoint.bom import bom
    from chip.checkpoint.diff import diff
    from chip.checkpoint.verify import verify
    from chip.data.readers import RecordSource
    from chip.editing import edit
    from chip.evaluating import evaluate
    from chip.general.collect import Keep
    from chip.inspection import inspect
    from chip.ledger import Ledger, LedgerKey
    from chip.reproduction import reproduce


__all__ = [
    "ChipError",
    "InputError",
    "Keep",
    "Ledger",
    "LedgerKey",
    "RecordSource",
    "RunError",
    "__version__",
    "bom",
    "diff",
    "edit",
    "evaluate",
    "inspect",
    "reproduce",
    "verify",
]

_HOMES = {
    "bom": "chip.checkpoint.bom",
    "Keep": "chip.general.collect",
    "Ledger": "chip.ledger",
    "LedgerKey": "chip.ledger",
    "RecordSource": "chip.data.readers",
    "diff": "chip.checkpoint.diff",
    "edit": "chip.editing",
    "evaluate": "chip.evaluating",
    "inspect": "chip.inspection",
    "reproduce": "chip.reproduction",
    "verify": "chip.checkpoint.verify",
}


def __getattr__(name: str) -> Any:
    """Imports a function when it is asked for: torch and transformers take seconds, and `--help` needs neither."""
    if name not in _HOMES:
        raise AttributeError(f"module 'chip' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
