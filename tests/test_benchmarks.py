"""What can be wrong in a benchmark: what it counts, the form of what it stores, and that all of it still runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any, Self

import pytest
import torch
import typer
from typer.testing import CliRunner

import benchmarks
from benchmarks import demo, demo_rows, schedule, sequences
from benchmarks.experts import OF_A_MEAN
from benchmarks.large import work
from benchmarks.measuring import median_seconds
from benchmarks.qwen import Shape, VisionShape
from benchmarks.reporting import RESULTS, Timing, read_rows, write_rows
from benchmarks.schedule import Task
from chip.demo import write_demo
from chip.methods import Chip, Method, Shielded

TINY = {
    "collect": ("--rounds", "1", "--records", "128", "--tiny"),
    "edit": ("--rounds", "1"),
    "large": ("--size", "tiny", "--records", "128", "--side", "112", "--device", "cpu"),
    "one_layer": ("--size", "tiny", "--tokens", "128"),
    "patch": ("--gigabytes", "0.05", "--hidden", "64", "--rounds", "1"),
    "projection": ("--tiny", "--rounds", "3"),
    "streaming": ("--size", "tiny", "--side", "112"),
}
"""Benchmark of speed -> the options that make it small."""


def run(name: str, *options: str) -> str:
    """What `python -m benchmarks.NAME` prints; in this process, since another one takes seconds to begin."""
    app = typer.Typer(add_completion=False)
    app.command()(module_of(name).main)
    result = CliRunner().invoke(app, options, env={"COLUMNS": "100"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def module_of(name: str) -> Any:
    package = (Path(benchmarks.__file__).parent / name).is_dir()
    return import_module(f"benchmarks.{name}.__main__" if package else f"benchmarks.{name}")


def write_few(folder: Path, overwrite: bool = False) -> None:
    """The demo with two wordings of each question in the place of eight: one trained, and one held out."""
    write_demo(folder, overwrite)
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    few = "".join(line for number, line in enumerate(lines) if number % 8 in (0, 6))
    (folder / "records.jsonl").write_text(few, encoding="utf-8")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks take the demo with few wordings."""
    for name in ("demo", "edit", "many_records", "picture", "sequences"):
        monkeypatch.setattr(module_of(name), "write_demo", write_few)
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)  # of this process


class OneProcess:
    """In the place of a pool: this process."""

    def __init__(self, _: int) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            task.then(task.call())


def check_timings(file: Path) -> None:
    """Whether a file of results is one, with the same columns everywhere."""
    header, rows = read_rows(file)
    assert header["versions"].keys() >= {"torch", "transformers", "safetensors"}
    assert header["device"]
    assert rows
    for row in rows:
        assert row.keys() == {field.name for field in fields(Timing)}
        timing = Timing(**row)
        assert timing.ours >= 0
        assert timing.ratio is None or timing.ratio == pytest.approx(row["baseline"] / row["ours"])
        assert timing.share_of_ceiling is None or timing.share_of_ceiling > 0


@pytest.mark.parametrize("name", TINY)
def test_committed_timings_are_rows(name: str) -> None:
    check_timings(RESULTS / f"{name}.json")


@pytest.mark.parametrize(
    ("dense", "experts", "tokens", "method"),
    [
        *(("dense", "experts", tokens, "shielded") for tokens in (4, 16)),
        *(("dense Qwen3.5", "shared expert", 16, method) for method in ("shielded", "combined")),
    ],
)
def test_a_mixture_of_experts_forgets_as_its_dense_twin(dense: str, experts: str, tokens: int, method: str) -> None:
    _, rows = read_rows(RESULTS / "experts.json")
    left, lost = [], []
    for model in (dense, experts):
        kind = (tokens, model, method, None)
        own = [row for row in rows if tuple(row[key] for key in OF_A_MEAN) == kind]
        assert len(own) == 12
        before, after = (torch.tensor([row[which] for row in own]).mean(0) for which in ("before", "after"))
        left.append(after[0])
        lost.append((before - after)[1:])
    assert (left[0] - left[1]).abs() < 0.05
    assert (lost[0] - lost[1]).abs().max() < 0.05


def test_committed_results_are_small() -> None:
    sizes = {file: file.stat().st_size for file in RESULTS.rglob("*") if file.is_file()}
    assert sum(sizes.values()) < 1_000_000
    assert all(size < 2 << 20 for size in sizes.values())


def test_the_demos_table_follows_from_its_rows() -> None:
    header, rows = read_rows(RESULTS / "demo.json")
    assert tuple(header["measures"]) == demo_rows.MEASURES
    edits = [row for row in rows if row["method"] != "chip grid"]
    line = next(line for line in demo_rows.table_of(edits) if line[:2] == ["shielded", "patient"])
    assert line[2:7] == [  # as in the README
        *("32", "0.12 / 0.12", "0.08 / 0.07 (0.07 / 0.08)", "1.00 / 0.99 (1.00 / 0.99)", "0.99 / 0.98 (0.99 / 0.97)"),
    ]
    best = demo_rows.best_of_grid(row for row in rows if row["method"] == "chip grid")
    assert (list(best.values())[:2], best["layers"]) == ([0.3, 0.95], "all")
    assert len({demo_rows.key_of(row) for row in edits}) == len(edits)


def test_every_committed_row_of_the_demo_is_found_again() -> None:
    runs: list[tuple[str, Method, str | None]] = [("chip", Chip(), None)]
    runs += [(name, Shielded(), None) for name in ("shielded", "control")]
    runs += [(name, chip, layers) for name in ("chip best", "chip grid") for chip, layers in demo.GRID]
    _, rows = read_rows(RESULTS / "demo.json")
    targets = {row["target"] for row in rows}
    tasks = [demo.Task(name, method, layers, target) for name, method, layers in runs for target in targets]
    keys = {task.key for task in tasks}
    versions = {task.name: task.method.version for task in tasks}
    assert all(row["version"] <= versions[row["method"]] for row in rows)  # earlier ones stay; the document says so
    assert {demo_rows.key_of({**row, "version": versions[row["method"]]}) for row in rows} <= keys


def test_no_round_begins_when_time_is_up() -> None:
    runs: list[str] = []

    def run(name: str) -> float:
        runs.append(name)
        return float(len(runs))

    variants = {name: partial(run, name) for name in ("a", "b")}
    assert median_seconds(variants, rounds=3, most=-1.0) == {"a": 1.0, "b": 2.0}
    assert median_seconds(variants, rounds=2) == {"a": 4.0, "b": 5.0}


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.json", ["a", "b"], [[1.23456789, None], ["x", {"c": [2e-9]}]], seed=3)
    assert read_rows(tmp_path / "rows.json") == (
        {"seed": 3},
        [{"a": 1.23457, "b": None}, {"a": "x", "b": {"c": [2e-9]}}],
    )
    assert len((tmp_path / "rows.json").read_text().splitlines()) == 4
    with pytest.raises(ValueError, match="JSON"):
        write_rows(tmp_path / "rows.json", ["a"], [[float("nan")]])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["demo", "drawn", "experts", "forgetting", "many_records", "picture", "pretrained", "sequences", *TINY]
)
def test_help(name: str) -> None:
    assert "Usage" in run(name, "--help")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
@pytest.mark.usefixtures("few")
@pytest.mark.filterwarnings("ignore::chip.errors.ChipWarning")  # so few questions say little
def test_a_tiny_run(name: str, tmp_path: Path) -> None:
    picture = ("--picture", str(tmp_path / "roofline.png")) if name == "projection" else ()
    run(name, *TINY[name], *picture, "--json", str(tmp_path / "rows.json"))
    check_timings(tmp_path / "rows.json")
    assert not picture or (tmp_path / "roofline.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.filterwarnings("ignore::chip.errors.ChipWarning")  # so few questions say little
def test_a_tiny_run_of_many_records() -> None:
    assert "1,300" in run("many_records", "--records", "1300", "--kind", "parquet")


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.filterwarnings("ignore::chip.errors.ChipWarning")  # so few questions say little
def test_a_tiny_run_of_the_picture(tmp_path: Path) -> None:
    run("picture", "--out", str(tmp_path / "edit.svg"))
    text = (tmp_path / "edit.svg").read_text()
    assert "patient_17" in text
    assert "http://www.w3.org/2000/svg" in text


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.filterwarnings("ignore::chip.errors.ChipWarning")  # so few questions say little
def test_a_tiny_run_of_the_demo_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(demo, "demo_model", cache(demo.DemoModel))
    monkeypatch.setattr(schedule, "Pool", OneProcess)
    small = ("--targets", "1", "--levels", "section", "--grid", "1", "--retain-weight", "8", "--workers", "1")
    options = (*small, "--json", str(tmp_path / "rows.json"))
    printed = run("demo", *options)
    _, rows = read_rows(tmp_path / "rows.json")
    assert [row["method"] for row in rows] == ["combined", "shielded", "control", "chip", "chip best", "chip grid"]
    assert "the best of the grid" in printed
    assert "1/" not in run("demo", *options, "--resume")
    assert read_rows(tmp_path / "rows.json")[1] == rows


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.filterwarnings("ignore::chip.errors.ChipWarning")  # so few questions say little
def test_a_tiny_run_of_sequences_goes_on_where_it_was(tmp_path: Path) -> None:
    files = ("--json", str(tmp_path / "rows.json"), "--picture", str(tmp_path / "curves.png"))
    options = ("--requests", "2", "--edit", "method=chip", "--cache", str(tmp_path), *files)
    run("sequences", *options, "--seconds", "1")
    assert [row["step"] for row in read_rows(tmp_path / "rows.json")[1]] == [0]
    run("sequences", *options, "--seconds", "1")
    printed = run("sequences", *options)
    _, (start, first, second, union) = read_rows(tmp_path / "rows.json")
    assert [(row["kind"], row["step"]) for row in (first, second, union)] == [
        *(("sequence", 1), ("sequence", 2)),
        ("union", 2),
    ]
    assert len(start["targets"]) == len(second["targets"]) == 2
    assert min(start["targets"]) > 0.9
    assert len(first["targets"]) == 1  # who is still to come is not written
    assert second["distance"] <= first["change"] + second["change"]
    assert union["distance"] == union["change"] > 0
    assert "came back (worst)" in printed
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_what_came_back_is_counted_from_each_targets_own_edit() -> None:
    """And the document says what the committed rows do."""
    answers = ([0.1], [0.3, 0.2], [0.0, 0.25, 0.1])
    rows = [{"kind": "sequence", "step": step, "targets": values} for step, values in enumerate(answers, 1)]
    assert sequences.came_back(rows) == [[], [pytest.approx(0.2)], [pytest.approx(-0.1), pytest.approx(0.05)]]
    _, committed = read_rows(RESULTS / "sequences.json")
    said = {"shielded+gated_text, version 2": (0.03, 0.11), "combined, version 1": (0.04, 0.18)}
    for method, values in said.items():
        *_, last = sequences.came_back(sequences.sequences(committed)[f"demo, 10 × patient: {method}"])
        assert (round(mean(last), 2), round(max(last), 2)) == values


def test_work_of_an_edit_by_hand() -> None:
    shape = Shape(2, 8, 6, 4, 2, vocabulary=100, vision=VisionShape(5, 4, 10, 2))
    needed = work(shape, layers=2, image_tokens=2, before=1, questions=[[3, 2], [4]])
    # A layer: q and o of 8 × 8, k and v of 8 × 4, gate, up and down of 8 × 6. Questions share three tokens.
    weights = 2 * 64 + 2 * 32 + 3 * 48
    first = 2 * weights * (3 + 5) + 4 * 8 * (4.5 + (9 + 4.5) + (6 + 2))
    second = 2 * weights * (3 + 4) + 4 * 8 * (4.5 + (12 + 8))
    # The tower: 8 patches of 1176 values, and 5 layers in which all patches see each other. Then the connector.
    tower = 2 * 8 * (1176 * 4 + 5 * (4 * 16 + 3 * 40)) + 4 * 4 * 5 * 64
    connector = 2 * 2 * (16 * 16 + 16 * 8)
    assert needed.passing == 2 * (first + second) + 2 * (tower + connector)
    assert needed.grams == 2 * 4 * 16**2 + 2 * (8 + 7) * 6**2
    assert needed.solving == pytest.approx(2 * 16**3 / 3 + 4 * (16 + 8) * 16**2 + 2 * (6**3 / 3 + 4 * 8 * 6**2))
