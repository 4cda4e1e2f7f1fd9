"""No two files import each other by any way round, kernels know torch alone, and a command loads what it needs.

Who may import whom among the packages is written down in pyproject.toml, and import-linter checks it. Here, an import
inside a function counts like any other: it hides a circle, it does not break one. An import under `TYPE_CHECKING` does
not count, as nothing runs there.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.ledgers import write_ledger
from tests.test_old_receipt import write_checkpoint, write_edited

ROOT = Path(__file__).parents[1]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(node: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Module, and what is taken from it, of every import in `node`, wherever it stands."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        yield from ((node.module or "", alias.name) for alias in node.names)
    else:
        typing_only = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in node.orelse if isinstance(node, ast.If) and typing_only else ast.iter_child_nodes(node):
            yield from imports(child)


def graph(package: str) -> dict[str, set[str]]:
    """File, as a module's name -> files of the same package that it imports."""
    trees = {module_name(path): ast.parse(path.read_bytes()) for path in (ROOT / package).rglob("*.py")}
    return {
        module: {
            target
            for imported, name in imports(tree)
            if (target := f"{imported}.{name}" if f"{imported}.{name}" in trees else imported) in trees
        }
        for module, tree in trees.items()
    }


@pytest.mark.parametrize("package", ["chip", "benchmarks", "tests"])
def test_no_files_import_each_other_in_a_circle(package: str) -> None:
    try:
        TopologicalSorter(graph(package)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_a_circle_is_seen_through_a_function_and_not_through_type_checking() -> None:
    lazy = ast.parse("def f():\n    from chip.a import b\n")
    typed = ast.parse("if TYPE_CHECKING:\n    import chip.a\nelse:\n    import chip.c\n")
    assert [*imports(lazy)] == [("chip.a", "b")]
    assert [*imports(typed)] == [("chip.c", None)]
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()


@pytest.mark.parametrize("path", sorted((ROOT / "chip" / "kernels").glob("*.py")), ids=lambda path: path.stem)
def test_kernels_import_torch_alone(path: Path) -> None:
    modules = {module for module, _ in imports(ast.parse(path.read_bytes())) if not module.startswith("chip.kernels")}
    assert {module.partition(".")[0] for module in modules} <= {"torch", *sys.stdlib_module_names}


HEAVY = ("torch", "transformers", "scipy", "accelerate", "peft")

COMMAND = f"""
import sys
from chip.cli.main import main
for command in " ".join(sys.argv[1:]).split(" & "):
    sys.argv[1:] = command.split()
    try:
        main()
    except SystemExit:
        pass
print("loaded:", *(name for name in {HEAVY} if name in sys.modules))
"""


def loaded_by(*arguments: object) -> list[str]:
    """Which of `HEAVY` a command, or several with `&` between them, has imported in a process of its own."""
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stderr.startswith("chip: "), done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("loaded:")]
    return line.split()[1:]


@pytest.mark.slow
def test_a_command_loads_what_it_needs(tmp_path: Path) -> None:
    original = write_checkpoint(tmp_path / "ckpt", (1, 2, 3, 4, 5, 6))
    edited = write_edited(tmp_path / "out")
    assert loaded_by("--help") == []
    assert loaded_by("edit", "--help") == ["torch"]  # its methods say what their settings are
    assert loaded_by("verify", edited) == []
    assert loaded_by("ledger", "show", write_ledger(tmp_path / "ledger.jsonl").path) == []
    assert loaded_by("diff", original, original, "--html", tmp_path / "page.html") == []
    measuring = loaded_by("verify", edited, "--original", original, "&", "diff", original, edited)
    assert set(measuring) == {"torch", "scipy"}
