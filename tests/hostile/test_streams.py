"""Where results go: closed, full, a pipe that nobody reads, or of a small alphabet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.families import build_with_records
from tests.hostile.case import EDIT

ROOT = Path(__file__).parents[2]
TREE = ("tree", "records.jsonl")
LONG = (("--help",), (), ("diff", "ckpt", "ckpt"), (*EDIT, "--dry-run"))
COMMANDS = [TREE, *(pytest.param(command, marks=pytest.mark.slow) for command in LONG)]
FULL = "chip: stdout: cannot be written to (No space left on device); send it elsewhere"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_with_records(tmp_path_factory.mktemp("streams"), "llava")
    records = folder / "records.jsonl"
    *lines, _, _ = records.read_text().replace("patient_2", "患者_2\\u2192 ‖é").splitlines(keepends=True)
    records.write_text("".join(lines), encoding="utf-8")
    return folder


def run(folder: Path, command: tuple[str, ...], **streams: Any) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONIOENCODING": streams.pop("encoding", "utf-8")}
    arguments: list[str] = [sys.executable, str(ROOT / "cli.py"), *command]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60} | streams
    return subprocess.run(arguments, cwd=folder, env=environment, check=False, **options)


def closing(*descriptors: int) -> Callable[[], None]:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return close


def said(stderr: bytes) -> list[str]:
    """What is not progress."""
    return [line for line in stderr.decode().splitlines() if not line.endswith(" ...")]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-16", "utf-8"])
def test_any_encoding_will_do(folder: Path, encoding: str) -> None:
    ended = run(folder, TREE, encoding=encoding)
    assert (ended.returncode, said(ended.stderr)) == (0, [])
    known = "患者_2→ ‖é" if encoding.startswith("utf") else "\\u60a3\\u8005_2"
    assert known in ended.stdout.decode(encoding)


@pytest.mark.slow
@pytest.mark.parametrize("command", LONG, ids=" ".join)
def test_ascii_is_enough_for_every_command(folder: Path, command: tuple[str, ...]) -> None:
    ended = run(folder, command, encoding="ascii")
    assert (ended.returncode, said(ended.stderr)) == (0, [])
    text = ended.stdout.decode("ascii")
    assert json.loads(text) if "--json" in command else text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_full_disk_is_one_line(folder: Path, command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = run(folder, command, stdout=full)
    assert (ended.returncode, said(ended.stderr)) == (2, [FULL])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nobody_reads_on(folder: Path, command: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = run(folder, command, stdout=writer)
    os.close(writer)
    assert (ended.returncode, said(ended.stderr)) == (0, [])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("descriptors", [(1,), (2,), (0, 1, 2)])
def test_what_is_closed_is_not_written_to(folder: Path, command: tuple[str, ...], descriptors: tuple[int, ...]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = run(folder, command, preexec_fn=closing(*descriptors))
    assert (ended.returncode, said(ended.stderr)) == (0, [])
    assert bool(ended.stdout) is (1 not in descriptors)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_refusal_that_nobody_hears_is_a_refusal(folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = run(folder, ("tree", "none.jsonl"), stderr=full)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert run(folder, ("tree", "none.jsonl"), preexec_fn=closing(2)).returncode == 2
