"""What `chip tree` and `chip demo` show: the hierarchy of records, and where to begin."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from chip.data.hierarchy import Hierarchy, Node
from chip.report.formatting import count
from chip.report.text.elements import escaped

_ENDLESS = 1 << 20  # columns


def print_tree(hierarchy: Hierarchy, depth: int, console: Console) -> None:
    """Each node with the number of its records, down to `depth` levels."""
    root = Tree(Text(f"{len(hierarchy.records):,} records", style="bold"))

    def add(branch: Tree, parent: Node | None) -> None:
        for node in hierarchy.children(parent):
            inner = branch.add(Text.assemble(escaped(node.id), " ", (f"{hierarchy.count(node):,}", "dim")))
            if len(node.path) < depth:
                add(inner, node)

    add(root, None)
    # Piped, a node is one line, however long its id.
    endless = console if console.is_terminal else Console(file=console.file, width=_ENDLESS, highlight=False)
    endless.print(root)
    levels = Counter(node.level for node in hierarchy.nodes)
    console.print(Text(", ".join(count(number, level) for level, number in levels.items()), style="dim"))


def print_demo(folder: Path, console: Console) -> None:
    """What is in the folder, and what to try on it."""
    console.print(escaped(f"{folder}/", "bold"))
    console.print("  ckpt/          a small vision-language model that knows the hospital")
    console.print("  records.jsonl  what there is to know, question by question")
    console.print("  images/        invented scans, portraits and signs")
    command = escaped(f"chip edit {folder}/ckpt --forget patient_17", "bold")
    console.print(Text.assemble("\nNow: ", command))
