"""What `chip diff` shows: a heat map of the layers, and a table of what changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chip.checkpoint.change_map import SHADES, ChangeMap, Grid, Scale, Sum
from chip.report.formatting import shape
from chip.report.text.elements import escaped

if TYPE_CHECKING:
    from chip.checkpoint.diff import CheckpointDiff
    from chip.checkpoint.tensor_diff import TensorDiff

# Cividis (Nuñez, Anderton and Renslow 2018) in steps: the same to color-blind eyes, and darker always means less.
_GROUND = ("#00224e", "#2a3f6d", "#575d6d", "#7d7c78", "#a69d75", "#d3c164", "#fee838")
_INK = ("#ffffff",) * 3 + ("#000000",) * 4
_CELL = 5  # characters of a number
_UNCHANGED = "·"


def print_diff(difference: CheckpointDiff, console: Console) -> None:
    """The heat map, the changed tensors, what is only in one, and the sum of it in one line."""
    if difference.changed:
        for grid in difference.map.grids:
            _print_grid(grid, difference.map.scale, console)
        if difference.map.outside:
            _print_outside(difference.map, console)
        console.print(_legend(difference.map.scale, colored=bool(console.color_system)))
        console.print()
        console.print(_tensors(difference.changed))
        console.print()
    for other in difference.shape_differs:
        shapes = f"{shape(other.shape_a)} in A, {shape(other.shape_b)} in B"
        console.print(escaped(f"other shape: {other.name}  {shapes}"))
    for side, names in (("A", difference.only_in_a), ("B", difference.only_in_b)):
        for name in names:
            console.print(escaped(f"only in {side}: {name}"))
    console.print(_summary(difference))


def _summary(difference: CheckpointDiff) -> str:
    if difference.equal:
        return "equal"
    counts = [
        (len(difference.shape_differs), "of another shape"),
        (len(difference.only_in_a), "only in A"),
        (len(difference.only_in_b), "only in B"),
    ]
    differ = f"{len(difference.changed)} of {len(difference.tensors)} tensors differ"
    return ", ".join([differ, *(f"{number} {what}" for number, what in counts if number)])


def _print_grid(grid: Grid, scale: Scale, console: Console) -> None:
    """Layers by kinds; one below the other what does not fit beside."""
    console.print(
        Text.assemble(
            escaped(grid.title, "bold"), "" if grid.title == grid.group else escaped(f"  {grid.group}", "dim")
        )
    )
    widths = [max(_CELL, len(label)) + 2 for label in grid.labels.values()]
    for kinds in _that_fit(grid.kinds, widths, console.width - 2 * (_CELL + 4)):
        console.print(_grid_table(grid, kinds, scale))
        console.print()


def _print_outside(changes: ChangeMap, console: Console) -> None:
    console.print(Text("outside the layers", style="bold"))
    table = Table(box=None, padding=0, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, total in changes.outside.items():
        shade = changes.scale.shade(total.relative_change)
        table.add_row(escaped(f"  {name}  "), _shaded(f" {_amount(total):>{_CELL}} ", shade))
    console.print(table)
    console.print()


def _that_fit(kinds: Sequence[str], widths: Sequence[int], available: int) -> Iterable[Sequence[str]]:
    begin = used = 0
    for i, width in enumerate(widths):
        if i > begin and used + width > available:
            yield kinds[begin:i]
            begin, used = i, 0
        used += width
    yield kinds[begin:]


def _grid_table(grid: Grid, kinds: Sequence[str], scale: Scale) -> Table:
    table = Table(box=None, padding=0, pad_edge=False, show_footer=True)
    table.add_column("layer ", footer="all ", justify="right", style="dim", footer_style="dim not bold")
    for kind in kinds:
        footer = Text(f" {_amount(grid.by_kind[kind])} ", style="dim not bold")
        heading = escaped(f" {grid.labels[kind]} ")
        table.add_column(heading, footer, justify="right", header_style="not bold", no_wrap=True)
    table.add_column("    all", f"  {_amount(grid.total)}", justify="right", style="dim", footer_style="dim not bold")
    for layer in grid.layers:
        cells = (_cell(grid.cells, (layer, kind), max(_CELL, len(grid.labels[kind])), scale) for kind in kinds)
        table.add_row(f"{layer} ", *cells, f"  {_amount(grid.by_layer[layer])}")
    return table


def _cell(cells: Mapping[tuple[int, str], Sum], key: tuple[int, str], width: int, scale: Scale) -> Text:
    if key not in cells:
        return Text()
    text = f" {_amount(cells[key]):>{width}} "
    if not cells[key].changed:
        return Text(text, style="dim")
    return _shaded(text, scale.shade(cells[key].relative_change))


def _shaded(text: str, shade: int) -> Text:
    return Text(text, style=f"{_INK[shade - 1]} on {_GROUND[shade - 1]}")


def _legend(scale: Scale, colored: bool) -> Text:
    if not colored:
        return Text(f"‖ΔW‖ / ‖W‖ of what changed   {_UNCHANGED} unchanged", style="dim")
    shades = (_shaded("  ", shade) for shade in range(1, SHADES + 1))
    ends = (f"  {_number(scale.low)} ", f" {_number(scale.high)}")
    return Text.assemble("‖ΔW‖ / ‖W‖ of what changed", ends[0], *shades, ends[1], f"   {_UNCHANGED} unchanged")


def _tensors(changed: Iterable[TensorDiff]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("changed tensor", overflow="fold")
    for heading in ("shape", "‖ΔW‖\n/ ‖W‖", "largest\nchange", "eff.\nrank", "% in\n1, 8, 64", "rows"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tensor in changed:
        name = escaped(tensor.name)
        if tensor.name_in_b is not None:
            name.append("\n").append_text(escaped(f"in B: {tensor.name_in_b}", "dim"))
        if "->" in tensor.dtype:
            name.append("\n").append_text(escaped(tensor.dtype, "dim"))
        table.add_row(
            name,
            shape(tensor.shape),
            _number(tensor.relative_change),
            f"{tensor.largest_change:.2g}",
            "–" if tensor.effective_rank is None else f"{tensor.effective_rank:.1f}",
            " ".join(f"{100 * share:3.0f}" for _, share in tensor.energy) or "–",
            f"{tensor.rows_changed:.0%}",
        )
    return table


def _amount(total: Sum) -> str:
    return _number(total.relative_change) if total.changed else f"{_UNCHANGED:^{_CELL}}"


def _number(value: float) -> str:
    """Five characters, as a rule: 0.012, 2e-05, 12.3, ∞."""
    if value == math.inf:
        return "∞"
    if value and not 0.0005 <= value < 1000:
        return f"{value:.0e}"
    return f"{value:.3f}" if value < 10 else f"{value:.4g}"
