"""How well the demo's model forgets: every patient, and studies, sections and institutions, one at a time.

    python -m benchmarks.demo [--workers N] [--json FILE] [--resume]

Each edit is written to disk, loaded again and asked every question; then its weights are rounded to 4 bits (round to
nearest, groups of 32) and it is asked again. Compared are the default operator, the published one with its defaults and
with the best of a grid, and random changes of the same size as the control.

The rows are those of all benchmarks (exact match on the target's trained questions, after and before), and more: first
the means over targets, which have `targets`, then the edits, which have `target` and everything that was measured.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.rows import Row, device_name, versions
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import write_patched
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.record import LEVELS
from chip.data.request import ForgetRequest
from chip.demo import write_demo
from chip.evaluation.attacks.quantization import quantize_linears
from chip.evaluation.summary import summarize
from chip.methods import Chip, Method, Shielded
from chip.methods.apply import Patch, default_modules, edit_model
from chip.model.loading import VLM, default_device, load_vlm
from chip.model.scoring import Scores, score_records
from chip.model.tensor_names import key_map

RESULTS = Path(__file__).parent / "results" / "demo.json"
SEED = 0
TARGETS_PER_LEVEL = 5
GRID_PATIENTS = 3

GRID = [
    (Chip(top_k=k, variance_threshold=variance_threshold), layers)
    for k, variance_threshold, layers in product((0.1, 0.3, 1.0), (0.95, 1.0), ("75%-100%", "all"))
]
"""Settings tried for the published operator; the best by (siblings − target) on a few patients is then run on all."""


@dataclass(frozen=True)
class Task:
    """One edit to measure."""

    method: str
    """As the tables call it."""
    operator: Method
    layers: str | None
    target: str
    """Path of the node."""
    quantize: bool = True
    """Ask again at 4 bits."""


@dataclass(frozen=True)
class Hospital:
    """The demo in a temporary folder, its model, and what it answers before any edit."""

    folder: Path
    source: Checkpoint
    hierarchy: Hierarchy
    vlm: VLM
    before: Scores


@cache
def hospital() -> Hospital:
    """One for each process."""
    folder = Path(tempfile.mkdtemp(prefix="chip-benchmark-"))
    write_demo(folder)
    source = Checkpoint.open(folder / "ckpt")
    hierarchy = Hierarchy(read_records(folder / "records.jsonl"))
    vlm = load_vlm(source.folder)
    return Hospital(folder, source, hierarchy, vlm, score_records(vlm, hierarchy.records))


def measure(task: Task) -> dict[str, Any]:
    """Edit, write, load what was written, ask; and ask again after rounding to 4 bits."""
    here = hospital()
    request = ForgetRequest.of(here.hierarchy, [task.target])
    start = time.monotonic()
    patch = edit_model(
        here.vlm, here.source, task.operator, request, default_modules(here.vlm, task.operator, layers=task.layers)
    )
    control = task.method == "control"
    tensors = random_update(here.source, patch.relative_change) if control else patch.tensors
    with tempfile.TemporaryDirectory(dir=here.folder) as scratch:
        written = Path(scratch) / "edited"
        write_patched(here.source, written, tensors)
        seconds = time.monotonic() - start
        _restore(here, patch)
        edited = load_vlm(written)
    after = score_records(edited, here.hierarchy.records)
    row = {
        "method": task.method,
        "settings": _settings(task),
        "level": LEVELS[task.target.count("/")],
        "target": task.target,
        "seconds": seconds,
        "relative_change": patch.relative_change,
        "groups": _json(summarize(request, here.before, after)),
    }
    if task.quantize:
        quantize_linears(edited.model, bits=4, group=32)
        row["groups_4bit"] = _json(summarize(request, here.before, score_records(edited, here.hierarchy.records)))
    return {**common(f"{task.method}: {row['level']} {task.target}", [row]), **row}


def common(case: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all benchmarks' rows have: exact match on the targets' trained questions, means over some edits."""
    after, before = (mean(_value(row, "target", "trained", when=when) for row in rows) for when in ("after", "before"))
    return asdict(Row(case, after, before, None, None, "exact match", device_name(default_device()), versions()))


def random_update(source: Checkpoint, relative_change: Mapping[str, float]) -> dict[str, Tensor]:
    """Random changes of the same norms: does the direction matter, or the damage?"""
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, size in relative_change.items():
        old = source.read(name).double()
        noise = torch.randn(old.shape, generator=generator, dtype=torch.float64)
        tensors[name] = old + noise * size * torch.linalg.norm(old) / torch.linalg.norm(noise)
    return tensors


@torch.no_grad()
def _restore(here: Hospital, patch: Patch) -> None:
    """Undo the edit of the model in memory."""
    on_disk = {disk: name for name, disk in key_map(here.source).items()}
    for disk in patch.relative_change:
        here.vlm.model.get_parameter(on_disk[disk]).copy_(here.source.read(disk))


def _json(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {group: {split: each.to_json() for split, each in splits.items()} for group, splits in groups.items()}


def targets(hierarchy: Hierarchy) -> dict[str, list[str]]:
    """Every patient, and five of each other level, spread over the hospital by a seed."""
    draw = random.Random(SEED)
    by_level = {level: [str(node) for node in hierarchy.nodes if node.level == level] for level in LEVELS}
    return {
        level: nodes if level == "patient" else sorted(draw.sample(nodes, TARGETS_PER_LEVEL))
        for level, nodes in by_level.items()
    }


def run(tasks: Sequence[Task], workers: int, known: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task: the known one, or measured now."""
    missing = [task for task in tasks if _key(task.method, _settings(task), task.target) not in known]
    threads = max(1, (os.cpu_count() or 1) // workers)
    measured = dict(known)
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (threads,)) as pool:
        for number, row in enumerate(pool.imap(measure, missing), start=1):
            groups = [group for group in row["groups"] if row["groups"][group]]
            shown = ", ".join(f"{group} {_value(row, group, 'trained'):.2f}" for group in groups)
            print(f"{number}/{len(missing)} {row['method']} {row['target']}: {shown}", flush=True)
            measured[_key(row["method"], row["settings"], row["target"])] = row
    return [measured[_key(task.method, _settings(task), task.target)] for task in tasks]


def _settings(task: Task) -> dict[str, Any]:
    return {**asdict(task.operator), "layers": task.layers}


def _key(method: str, settings: Mapping[str, Any], target: str) -> str:
    return json.dumps([method, dict(settings), target])


def best_of_grid(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings with the largest mean of siblings − target on trained questions."""
    gaps: dict[str, list[float]] = {}
    for row in rows:
        gap = _value(row, "siblings", "trained") - _value(row, "target", "trained")
        gaps.setdefault(json.dumps(row["settings"]), []).append(gap)
    settings: dict[str, Any] = json.loads(max(gaps, key=lambda key: mean(gaps[key])))
    return settings


def _value(row: Mapping[str, Any], group: str, split: str, groups: str = "groups", when: str = "after") -> float:
    return float(row[groups][group][split]["exact_match"][when])


def summarize_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over targets for each method and level, with the worst target's siblings."""
    summary = []
    for method, level in dict.fromkeys((row["method"], row["level"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["level"]) == (method, level)]
        case = f"{method}: {level}, mean of {len(mine)}"
        measured_on = {name: mine[0][name] for name in ("device", "versions")}  # rows that are kept may be older
        line = {**common(case, mine), **measured_on, "method": method, "level": level, "targets": len(mine)}
        for groups, suffix in (("groups", ""), ("groups_4bit", "_4bit")):
            for group, split in product(("target", "siblings", "other"), ("trained", "paraphrased")):
                having = [row for row in mine if split in row[groups].get(group, {})]
                if having:
                    line[f"{group}_{split}{suffix}"] = mean(_value(row, group, split, groups) for row in having)
        line["chance_trained"] = mean(row["groups"]["target"]["trained"]["chance"] for row in mine)
        line["chance_rephrased"] = mean(row["groups"]["target"]["paraphrased"]["chance"] for row in mine)
        line["worst_siblings"] = min(_value(row, "siblings", "trained") for row in mine)
        line["largest_change"] = max(max(row["relative_change"].values(), default=0.0) for row in mine)
        line["seconds"] = mean(row["seconds"] for row in mine)
        summary.append(line)
    return summary


def show(summary: Sequence[Mapping[str, Any]]) -> None:
    """One line for each method and level; exact match on trained / paraphrased questions."""
    table = Table(box=box.SIMPLE_HEAD, title="exact match after the edit, trained / paraphrased (4 bits)")
    for column in (
        "method",
        "level",
        "targets",
        "chance",
        "target",
        "siblings",
        "other",
        "worst siblings",
        "largest ‖ΔW‖/‖W‖",
    ):
        table.add_column(column, justify="left" if column in ("method", "level") else "right")
    for line in summary:

        def cell(group: str, line: Mapping[str, Any] = line) -> str:
            if f"{group}_trained" not in line:
                return "–"
            exact = [line[f"{group}_{split}{bits}"] for bits in ("", "_4bit") for split in ("trained", "paraphrased")]
            return "{:.2f} / {:.2f} ({:.2f} / {:.2f})".format(*exact)

        table.add_row(
            line["method"],
            line["level"],
            str(line["targets"]),
            f"{line['chance_trained']:.2f} / {line['chance_rephrased']:.2f}",
            cell("target"),
            cell("siblings"),
            cell("other"),
            f"{line['worst_siblings']:.2f}",
            f"{line['largest_change']:.2f}",
        )
    Console(width=180).print(table)


def main(
    workers: Annotated[int, typer.Option(help="DistributedContext; each loads the demo's model.")] = 2,
    json_file: Annotated[Path, typer.Option("--json", help="Where the rows go.")] = RESULTS,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the rows that are there already.")] = False,
) -> None:
    """Measure all of it."""
    kept = json.loads(json_file.read_text()) if resume else []
    known = {_key(row["method"], row["settings"], row["target"]): row for row in kept if "target" in row}
    nodes = targets(hospital().hierarchy)
    everyone = [node for level in LEVELS for node in nodes[level]]
    some = random.Random(SEED).sample(nodes["patient"], GRID_PATIENTS)
    tried = [Task("chip grid", operator, layers, node, quantize=False) for operator, layers in GRID for node in some]
    grid = run(tried, workers, known)
    best = best_of_grid(grid)
    layers = best.pop("layers")
    tasks = [
        *(Task("shielded", Shielded(), None, node) for node in everyone),
        *(Task("control", Shielded(), None, node) for node in some),
        *(Task("chip", Chip(), None, node) for node in everyone),
        *(Task("chip best", Chip(**best), layers, node) for node in everyone),
    ]
    rows = run(tasks, workers, known)
    summary = summarize_rows(rows)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps([*summary, *rows, *grid], indent=1, ensure_ascii=False) + "\n")
    print(f"the best of the grid: {best}, layers {layers}")
    show(summary)


if __name__ == "__main__":
    typer.run(main)
