"""Requests over time: a file of what was asked, done and measured. It knows no models, and loads no torch."""

from chip.ledger.key import LedgerKey
from chip.ledger.ledger import Ledger

__all__ = ["Ledger", "LedgerKey"]
