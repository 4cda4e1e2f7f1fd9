"""What the documents say is so: links lead somewhere, options exist, the examples of CONTRIBUTING.md run."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer.main

from chip.cli.main import app
from chip.methods import METHODS
from chip.methods.settings import settings_of
from tests.families import build, write_records

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 150

OTHER_PROGRAMS = {
    *("--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--editable", "--signature"),
    *("--quick", "--cache", "--edit", "--level", "--requests", "--world"),
}
"""Options in the documents that are torchrun's, pip's, the benchmarks' and model_signing's."""


def links(document: Path) -> list[str]:
    """What the document links to in the repository, without the anchor."""
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    return [target.partition("#")[0] for target in targets if "://" not in target and not target.startswith("#")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for target in links(document):
        if not target.startswith("pictures/"):  # the site gets these from benchmarks/results: docs/hooks/site.py
            assert (document.parent / target).exists(), target


def test_the_sites_pictures_are_those_of_the_benchmarks() -> None:
    pictures = {Path(target).name for document in DOCUMENTS for target in links(document) if "pictures/" in target}
    named = set(re.findall(r'"([\w/]+\.(?:svg|png))"', (ROOT / "docs" / "hooks" / "site.py").read_text()))
    assert pictures == {Path(name).name for name in named}
    assert all((ROOT / "benchmarks" / "results" / name).is_file() for name in named)


def test_every_page_is_in_the_sites_navigation() -> None:
    pages = re.findall(r"^  - [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def options(command: Any) -> set[str]:
    """Of a command, and of those below it."""
    below = getattr(command, "commands", {}).values()
    return {name for parameter in command.params for name in parameter.opts}.union(*map(options, below))


def test_options_in_the_documents_exist() -> None:
    own = options(typer.main.get_group(app))
    settings = chain.from_iterable(map(settings_of, METHODS.values()))
    existing = {*own, *(f"--{name.replace('_', '-')}" for name in settings), *OTHER_PROGRAMS}
    for document in DOCUMENTS:
        if document.name not in ("changes.md", "CONTRIBUTING.md"):
            text = re.sub(r"^```(?:toml|python).*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
            assert not set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - existing, document.name


def test_the_readme_is_short_and_warns_first() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= README_LINES
    assert any("On a pretrained model, try it out and do not rely on it yet" in line for line in lines[:12])


def examples() -> dict[str, str]:
    """The complete modules in CONTRIBUTING.md by name: those that begin with a docstring."""
    blocks = re.findall(r'^```python\n(""".*?)^```', (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    return dict(zip(("example_method", "example_reader", "example_attack"), blocks, strict=True))


def run(folder: Path, *arguments: object) -> str:
    """What the command prints, with the examples as plugins."""
    paths = os.pathsep.join(filter(None, (str(folder), str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "CHIP_PLUGINS": ",".join(examples())}
    command = [sys.executable, "-m", "chip", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_examples_of_extensions_run_as_they_stand(tmp_path: Path) -> None:
    for name, text in examples().items():
        (tmp_path / f"{name}.py").write_text(text)
    checkpoint, records = build(tmp_path / "ckpt", "llava"), write_records(tmp_path)
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    columns = ("question", "answer", "institution", "patient", "study", "section", "image")
    with records.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    records = records.with_suffix(".csv")

    request = (checkpoint, "--records", records, "--forget", "patient_1", "--device", "cpu", "--json")
    evaluation = json.loads(run(tmp_path, "eval", *request, "--attacks", "insisting"))
    assert {row["attack"] for row in evaluation["rows"]} >= {"insisting: capitals", "insisting: twice"}

    method = ("--method", "mean-difference", "--strength", 0.5)
    edit = json.loads(run(tmp_path, "edit", *request, "--out", tmp_path / "edited", *method, "--force"))
    assert edit["settings"]["strength"] == 0.5
    assert all(name.endswith("down_proj.weight") for name in edit["changed_tensors"])
