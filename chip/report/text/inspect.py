"""What `chip inspect` shows: what a checkpoint is, and which of its layers an edit would touch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chip.report.formatting import count
from chip.report.text.elements import escaped, plain_table

if TYPE_CHECKING:  # brings torch
    from chip.inspection import Inspection
    from chip.sinks import LargestToken


def print_inspection(inspection: Inspection, console: Console) -> None:
    """One line about the checkpoint, its target modules, what an edit does not reach, and with records its sinks."""
    facts = (
        f"  {inspection.architecture}, {inspection.parameters:,} parameters, {'/'.join(inspection.dtypes)}, "
        f"{count(inspection.shards, 'shard')}"
    )
    console.print(Text.assemble(escaped(inspection.family, "bold"), escaped(facts)))
    table = plain_table("module", "layers", "count", "shape (out × in)", "edited by")
    for row in inspection.target_modules:
        shape = ", ".join(f"{d_out:,} × {d_in:,}" for d_out, d_in in row.shapes)
        table.add_row(escaped(row.kind), row.layers, str(row.count), shape, escaped(", ".join(row.edited_by) or "–"))
    console.print(table)
    for note in inspection.notes:
        console.print(escaped(note, "dim"))
    if inspection.largest_tokens:
        console.print(_sinks(inspection.largest_tokens))


def _sinks(rows: Sequence[LargestToken]) -> Table:
    table = plain_table("input of", "largest token, share of tr(C)", "its length over the median")
    for row in rows:
        table.add_row(escaped(row.module), f"{row.share:.1%}", f"{row.ratio:,.0f} ×")
    return table
