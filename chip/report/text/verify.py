"""What `chip verify` shows: whether a folder is what its receipt says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from chip.report.formatting import count
from chip.report.text.elements import escaped

if TYPE_CHECKING:  # brings torch
    from chip.checkpoint.verify import Verification


def print_verification(verification: Verification, console: Console) -> None:
    """The receipt in one line, then each fault, or what was found to be as written."""
    receipt = verification.receipt
    label = f", {receipt.label}" if receipt.label else ""
    console.print(escaped(f"receipt: {receipt.method}, {receipt.created}, chip {receipt.chip}{label}"))
    for fault in verification.faults:
        console.print(Text.assemble(("✗", "bold red"), " ", escaped(fault)))
    if verification.faults:
        faults = count(len(verification.faults), "fault")
        console.print(Text.assemble((faults, "bold"), ": this is not what was written"))
        return
    checks = [f"{count(len(receipt.files), 'file')} as written"]
    if receipt.base is None:
        checks.append(f"{count(len(receipt.tensors), 'changed tensor')} as written")
    if verification.with_original:
        bytes_kept = f"{receipt.untouched_bytes:,} other bytes are the original's"
        checks.append(bytes_kept if receipt.base is None else "the original is the model that the adapter was made to")
    if verification.with_original and receipt.quantized is not None:
        checks.append("the original is the quantized checkpoint that was dequantized")
    if verification.signed_by is not None:
        checks.append(f"signed with the key of {escaped(verification.signed_by)}")
    for check in checks:
        console.print(Text.assemble(("✓", "green"), " ", check))
    if verification.signed and verification.signed_by is None:
        hint = "– signed: give --public-key to check by whom"
        console.print(Text(hint, style="dim"))
    if not verification.with_original:
        hint = "– what was not to change: give the original with --original to compare with it"
        console.print(Text(hint, style="dim"))
