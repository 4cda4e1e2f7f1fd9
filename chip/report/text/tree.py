"""What `chip tree` and `chip demo` show: the hierarchy of records, and where to begin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from chip.data.hierarchy import Hierarchy, Node
from chip.errors import printable
from chip.report.formatting import count
from chip.report.text.elements import escaped


def print_tree(hierarchy: Hierarchy, depth: int, console: Console) -> None:
    """Each node with the number of its records, down to `depth` levels."""
    if console.is_terminal:
        console.print(_tree(hierarchy, depth))
    else:  # a node is one line, however long its id
        console.file.writelines(f"{line}\n" for line in _lines(hierarchy, depth, console.options.ascii_only))
    levels = Counter(node.level for node in hierarchy.nodes)
    console.print(Text(", ".join(count(number, level) for level, number in levels.items()), style="dim"))


def _tree(hierarchy: Hierarchy, depth: int) -> Tree:
    root = Tree(Text(_heading(hierarchy), style="bold"))

    def add(branch: Tree, parent: Node | None) -> None:
        for node in hierarchy.children(parent):
            inner = branch.add(Text.assemble(escaped(node.id), " ", (f"{hierarchy.count(node):,}", "dim")))
            if len(node.path) < depth:
                add(inner, node)

    add(root, None)
    return root


def _lines(hierarchy: Hierarchy, depth: int, ascii_only: bool) -> Iterator[str]:
    """The tree without colors; rich would take a tenth of a millisecond a node."""
    yield _heading(hierarchy)
    fork, end, beside = ("+-- ", "`-- ", "|   ") if ascii_only else ("├── ", "└── ", "│   ")

    def below(parent: Node | None, guides: str) -> Iterator[str]:
        nodes = hierarchy.children(parent)
        for number, node in enumerate(nodes, start=1):
            last = number == len(nodes)
            yield f"{guides}{end if last else fork}{printable(node.id)} {hierarchy.count(node):,}"
            if len(node.path) < depth:
                yield from below(node, guides + ("    " if last else beside))

    yield from below(None, "")


def _heading(hierarchy: Hierarchy) -> str:
    return f"{len(hierarchy.records):,} records"


def print_demo(folder: Path, console: Console) -> None:
    """What is in the folder, and what to try on it."""
    console.print(escaped(f"{folder}/", "bold"))
    console.print("  ckpt/          a small vision-language model that knows the hospital")
    console.print("  records.jsonl  what there is to know, question by question")
    console.print("  images/        invented scans, portraits and signs")
    command = escaped(f"chip edit {folder}/ckpt --forget patient_17", "bold")
    console.print(Text.assemble("\nNow: ", command))
