"""What `chip reproduce` shows: whether an edit that was made again gave the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from chip.report.formatting import count
from chip.report.text.elements import escaped, plain_table

if TYPE_CHECKING:  # brings torch
    from chip.reproduction import Reproduction

OTHER_REQUEST = 0.5
"""Of what the edit changed: no rounding makes such a difference, and every other request does."""


def print_reproduction(reproduction: Reproduction, console: Console) -> None:
    """A table of the tensors that differ, what ran otherwise, and what that comes to."""
    if reproduction.differ:
        table = plain_table("changed tensor", "‖ΔW‖ / ‖W‖ then", "now", "difference / ‖ΔW‖")
        for name, distance in reproduction.differ.items():
            then, now = reproduction.relative_change[name]
            changes = ("unknown" if change is None else f"{change:.6f}" for change in (then, now))
            table.add_row(escaped(name), *changes, "unknown" if distance is None else f"{distance:.1e}")
        console.print(table)
    for note in _notes(reproduction):
        console.print(escaped(note, "dim"))
    console.print(_verdict(reproduction), soft_wrap=not console.is_terminal)  # piped, one line for a script to take


def _notes(reproduction: Reproduction) -> Iterator[str]:
    for name, (then, now) in reproduction.environment.items():
        yield f"{name}: {then} then, {now} now"
    if reproduction.same_general_data is not None:
        others = "the same" if reproduction.same_general_data else "not the same, and other weights follow from that"
        yield f"general data that was protected: {others}"
    if reproduction.differ and not reproduction.batch_size_given:
        yield "batches were as large as the machine's speed made them, which changes rounding; a given size would not"


def _verdict(reproduction: Reproduction) -> Text:
    total = len(reproduction.same) + len(reproduction.differ)
    if reproduction.equal:
        return Text.assemble(("the same", "bold green"), f": all {count(total, 'changed tensor')}, bit for bit")
    differ = f"{len(reproduction.differ):,} of {count(total, 'changed tensor')}"
    known = [distance for distance in reproduction.differ.values() if distance is not None]
    if len(known) < len(reproduction.differ):
        return Text.assemble(("not the same", "bold"), f": {differ}; by how much, only the edited folder can show")
    hint = "; other records, nodes or data to keep give such a difference" if max(known) > OTHER_REQUEST else ""
    by = f"differ by at most {max(known):.1e} of what the edit changed"
    return Text.assemble(("not the same", "bold"), f": {differ} {by}{hint}")
