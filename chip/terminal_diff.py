"""What `chip diff` shows in the terminal: a heat map of the layers, and a table of what changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from chip.checkpoint.change_map import SHADES, ChangeMap, Grid, Scale, Sum
from chip.terminal import out

if TYPE_CHECKING:
    from chip.checkpoint.diff import CheckpointDiff
    from chip.checkpoint.tensor_diff import TensorDiff

# Cividis (Nuñez, Anderton and Renslow 2018) in steps: the same to color-blind eyes, and darker always means less.
_GROUND = ("#00224e", "#2a3f6d", "#575d6d", "#7d7c78", "#a69d75", "#d3c164", "#fee838")
_INK = ("#ffffff",) * 3 + ("#000000",) * 4
_CELL = 5  # characters of a number
_UNCHANGED = "·"


def print_diff(difference: CheckpointDiff) -> None:
    """The heat map, the changed tensors, what is only in one, and the sum of it in one line."""
    if difference.changed:
        for grid in difference.map.grids:
            _print_grid(grid, difference.map.scale)
        if difference.map.outside:
            _print_outside(difference.map)
        out.print(_legend(difference.map.scale))
        out.print()
        out.print(_tensors(difference.changed))
        out.print()
    for each in difference.shape_differs:
        out.print(f"other shape: {each.name}  {_shape(each.shape_a)} in A, {_shape(each.shape_b)} in B", markup=False)
    for name in difference.only_in_a:
        out.print(f"only in A: {name}", markup=False)
    for name in difference.only_in_b:
        out.print(f"only in B: {name}", markup=False)
    out.print(_summary(difference))


def _summary(difference: CheckpointDiff) -> str:
    if difference.equal:
        return "equal"
    told = [f"{len(difference.changed)} of {len(difference.tensors)} tensors differ"]
    if difference.shape_differs:
        told.append(f"{len(difference.shape_differs)} of another shape")
    told += [
        f"{len(names)} only in {side}"
        for side, names in (("A", difference.only_in_a), ("B", difference.only_in_b))
        if names
    ]
    return ", ".join(told)


def _print_grid(grid: Grid, scale: Scale) -> None:
    """Layers by kinds; one below the other what does not fit beside."""
    out.print(Text.assemble((grid.title, "bold"), "" if grid.title == grid.group else (f"  {grid.group}", "dim")))
    wide = [max(_CELL, len(label)) + 2 for label in grid.labels.values()]
    for kinds in _that_fit(grid.kinds, wide, out.width - 2 * (_CELL + 4)):
        out.print(_grid_table(grid, kinds, scale))
        out.print()


def _print_outside(changes: ChangeMap) -> None:
    out.print("[bold]outside the layers[/]")
    table = Table(box=None, padding=0, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, found in changes.outside.items():
        table.add_row(
            Text(f"  {name}  "), _shaded(f" {_amount(found):>{_CELL}} ", changes.scale.shade(found.relative_change))
        )
    out.print(table)
    out.print()


def _that_fit(kinds: Sequence[str], wide: Sequence[int], width: int) -> Iterable[Sequence[str]]:
    begin = used = 0
    for i, each in enumerate(wide):
        if i > begin and used + each > width:
            yield kinds[begin:i]
            begin, used = i, 0
        used += each
    yield kinds[begin:]


def _grid_table(grid: Grid, kinds: Sequence[str], scale: Scale) -> Table:
    table = Table(box=None, padding=0, pad_edge=False, show_footer=True)
    table.add_column("layer ", footer="all ", justify="right", style="dim", footer_style="dim not bold")
    for kind in kinds:
        footer = Text(f" {_amount(grid.by_kind[kind])} ", style="dim not bold")
        table.add_column(f" {grid.labels[kind]} ", footer, justify="right", header_style="not bold", no_wrap=True)
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


def _legend(scale: Scale) -> Text:
    colors = (_shaded("  ", shade) for shade in range(1, SHADES + 1)) if out.color_system else ()
    return Text.assemble(
        "‖ΔW‖ / ‖W‖ of what changed",
        *((f"  {_number(scale.low)} ", *colors, f" {_number(scale.high)}") if out.color_system else ()),
        f"   {_UNCHANGED} unchanged",
        style="dim" if not out.color_system else "",
    )


def _tensors(changed: Iterable[TensorDiff]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("changed tensor", overflow="fold")
    for heading in ("shape", "‖ΔW‖\n/ ‖W‖", "largest\nchange", "eff.\nrank", "% in\n1, 8, 64", "rows"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in changed:
        name = Text(each.name)
        if each.name_in_b is not None:
            name.append(f"\nin B: {each.name_in_b}", style="dim")
        if "->" in each.dtype:
            name.append(f"\n{each.dtype}", style="dim")
        table.add_row(
            name,
            _shape(each.shape),
            _number(each.relative_change),
            f"{each.largest_change:.2g}",
            "–" if each.effective_rank is None else f"{each.effective_rank:.1f}",
            " ".join(f"{100 * share:3.0f}" for _, share in each.energy) or "–",
            f"{each.rows_changed:.0%}",
        )
    return table


def _amount(found: Sum) -> str:
    return _number(found.relative_change) if found.changed else f"{_UNCHANGED:^{_CELL}}"


def _number(value: float) -> str:
    """Five characters, as a rule: 0.012, 2e-05, 12.3, ∞."""
    if value == math.inf:
        return "∞"
    if value and not 0.0005 <= value < 1000:
        return f"{value:.0e}"
    return f"{value:.3f}" if value < 10 else f"{value:.4g}"


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
