"""What the commands show a person: trees, tables and progress bars."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.tree import Tree

from chip.checkpoint.model_card import settings_line
from chip.data.hierarchy import Hierarchy, Node

if TYPE_CHECKING:  # these bring torch, which trees and help do without
    from chip.checkpoint.verify import Verification
    from chip.editing import EditReport
    from chip.evaluation.summary import BeforeAfter
    from chip.inspection import Inspection

out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
"""Where results go; piped, wide enough that no line is broken."""
_err = Console(stderr=True, highlight=False)


def quiet_libraries() -> None:
    """Keep advice that is meant for developers of transformers off the user's terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@contextmanager
def progress(what: str, steps: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with the time left; one plain line where stderr is no terminal."""
    if not _err.is_terminal:
        _err.print(f"{what} ...")
        yield lambda _: None
        return
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_err, transient=True) as bar:
        task = bar.add_task(what, total=steps)
        yield lambda steps: bar.advance(task, steps)


def print_demo(folder: Path) -> None:
    out.print(f"[bold]{folder}/[/]")
    out.print("  ckpt/          a small vision-language model that knows the hospital")
    out.print("  records.jsonl  what there is to know, question by question")
    out.print("  images/        invented scans, portraits and signs")
    out.print(f"\nNow: [bold]chip edit {folder}/ckpt --forget patient_17[/]")


def print_tree(hierarchy: Hierarchy, depth: int) -> None:
    total = len(hierarchy.records)
    root = Tree(f"[bold]{total:,} records[/]")

    def add(branch: Tree, parent: Node | None) -> None:
        for node in hierarchy.children(parent):
            inner = branch.add(f"{node.id} [dim]{hierarchy.count(node):,}[/]")
            if len(node.path) < depth:
                add(inner, node)

    add(root, None)
    out.print(root)
    levels = Counter(node.level for node in hierarchy.nodes)
    out.print(f"[dim]{', '.join(f'{count:,} {_plural(level, count)}' for level, count in levels.items())}[/]")


def _plural(level: str, count: int) -> str:
    if count == 1:
        return level
    return f"{level[:-1]}ies" if level.endswith("y") else f"{level}s"


def print_inspection(found: Inspection) -> None:
    out.print(
        f"[bold]{found.family}[/]  {found.architecture}, {found.parameters:,} parameters, "
        f"{'/'.join(found.dtypes)}, {found.shards} {'shard' if found.shards == 1 else 'shards'}"
    )
    table = _table("site", "layers", "count", "shape (out × in)", "edited by")
    for row in found.target_modules:
        shape = ", ".join(f"{d_out:,} × {d_in:,}" for d_out, d_in in row.shapes)
        table.add_row(row.kind, row.layers, str(row.count), shape, ", ".join(row.edited_by) or "–")
    out.print(table)


def print_edit(report: EditReport) -> None:
    table = _table("", "questions", "records", "chance", "exact match", "answer probability")
    for group, results in report.groups.items():
        for split, result in results.items():
            table.add_row(
                group,
                split,
                f"{result.count:,}",
                f"{result.chance:.2f}",
                _arrow(result.exact_match),
                _arrow(result.answer_probability),
                end_section=split == list(results)[-1],
            )
    out.print(table)
    changes = _table("changed tensor", "‖ΔW‖ / ‖W‖", *(["‖QᵀW′‖ / ‖QᵀW‖"] if report.remaining else []))
    for name, change in report.relative_change.items():
        left = [f"{report.remaining[name]:.1e}"] if name in report.remaining else []
        changes.add_row(name, f"{change:.3f}", *left)
    out.print(changes)
    out.print(f"[dim]{report.method}: {settings_line(report.settings)}[/]")
    if report.choice is not None:
        out.print(f"[dim]shield {report.choice.retain_weight:g} was chosen: {report.choice.reason}[/]")
    if not report.shares_images:
        out.print("[dim]each question ran its own image: in this family the image sees the question[/]")
    count = len(report.relative_change)
    tensors = f"{count} {'tensor' if count == 1 else 'tensors'}"
    if report.output is None:
        out.print(f"dry run: [bold]{tensors}[/] would change, nothing written ({report.seconds:.0f} s)")
    else:
        out.print(f"wrote [bold]{report.output}[/]: {tensors} changed, {report.seconds:.0f} s")


def _arrow(measure: BeforeAfter) -> str:
    before = f"{measure.before:.2f}"
    return before if measure.after is None else f"{before} → [bold]{measure.after:.2f}[/]"


def print_verification(found: Verification) -> None:
    receipt = found.receipt
    out.print(
        f"receipt: {receipt.method}, {receipt.created}, chip {receipt.chip}"
        + (f", {receipt.label}" if receipt.label else ""),
        markup=False,
    )
    for fault in found.faults:
        out.print(f"[bold red]✗[/] {escape(fault)}")
    if found.faults:
        out.print(f"[bold]{_count(len(found.faults), 'fault')}[/]: this is not what was written")
        return
    out.print(f"[green]✓[/] {_count(len(receipt.files), 'file')} as written")
    out.print(f"[green]✓[/] {_count(len(receipt.tensors), 'changed tensor')} as written")
    if found.with_original:
        out.print(f"[green]✓[/] {receipt.untouched_bytes:,} other bytes are the original's")
    else:
        out.print("[dim]– what was not to change: give the original with --original to compare with it[/]")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what if number == 1 else _plural(what, number)}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
    return table
