"""How well the demo's model forgets: every patient, and studies, sections and institutions, one at a time.

    python -m benchmarks.demo [--workers N] [--json FILE] [--resume]

Each edit is written to disk, loaded again and asked every question; then its weights are rounded to 4 bits (round to
nearest, groups of 32) and it is asked again. Compared are the default method, its linear edit alone, the published one
with its defaults and with the best of a grid, and random changes of the linear edit's size as the control.

The file has a row for each edit, found again by method, version, settings and target; tables are means over targets.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks import schedule
from benchmarks.demo_rows import COLUMNS, GROUPS, MEASURES, DemoRow, best_of_grid, key, key_of, show, value
from benchmarks.editing import edited
from benchmarks.reporting import RESULTS, known_rows, largest_change, store_rows
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import write_patched
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.record import LEVELS
from chip.data.request import ForgetRequest
from chip.demo import write_demo
from chip.evaluation.attacks.quantization import quantize_linears
from chip.evaluation.rows import SPLITS
from chip.evaluation.summary import summarize
from chip.methods import DEFAULT, Chip, Method, Shielded
from chip.model.loading import VLM, default_device, load_vlm
from chip.model.scoring import Scores, score_records

SEED = 0
TARGETS_PER_LEVEL = 5
GRID_PATIENTS = 3

GRID = [
    (Chip(top_k=k, variance_threshold=variance_threshold), layers)
    for k, variance_threshold, layers in product((0.1, 0.3, 1.0), (0.95, 1.0), ("75%-100%", "all"))
]
"""Settings tried for the published method; the best by (siblings − target) on a few patients is then run on all."""


@dataclass(frozen=True)
class Task:
    """One edit to measure."""

    name: str
    """As the tables call it."""
    method: Method
    layers: str | None
    target: str
    """Path of the node."""
    four_bits: bool = True
    """Ask again at 4 bits."""

    @property
    def settings(self) -> dict[str, Any]:
        """The method's, without those that another one decides, and the layers."""
        given = {name: value for name, value in asdict(self.method).items() if value is not None}
        return {**given, "layers": self.layers}

    @property
    def key(self) -> str:
        return key(self.name, self.method.version, self.settings, self.target)


class DemoModel:
    """The demo in a temporary folder, its model, and what it answers before any edit. Nothing is loaded unread."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chip-benchmark-"))
        write_demo(self.folder)
        self.source = Checkpoint.open(self.folder / "ckpt")
        self.hierarchy = Hierarchy(read_records(self.folder / "records.jsonl"))

    @cached_property
    def vlm(self) -> VLM:
        return load_vlm(self.source.folder)

    @cached_property
    def before(self) -> Scores:
        return score_records(self.vlm, self.hierarchy.records)


demo_model = cache(DemoModel)
"""One for each process."""


def measure(task: Task) -> DemoRow:
    """Edit, write, load what was written, ask; and ask again after rounding to 4 bits."""
    demo = demo_model()
    request = ForgetRequest.of(demo.hierarchy, [task.target])
    before = demo.before  # asked while the model is as it was
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=demo.folder) as scratch:
        written = Path(scratch) / "edited"
        with edited(demo.vlm, demo.source, task.method, request, layers=task.layers) as patch:
            control = task.name == "control"
            tensors = random_update(demo.source, patch.relative_change) if control else patch.tensors
            write_patched(demo.source, written, tensors)
        seconds = time.monotonic() - start
        forgetful = load_vlm(written)
    groups = _groups(request, before, forgetful)
    groups_4bit = None
    if task.four_bits:
        quantize_linears(forgetful.model, bits=4, group=32)
        groups_4bit = _groups(request, before, forgetful)
    return {
        "method": task.name,
        "version": task.method.version,
        "settings": task.settings,
        "level": LEVELS[task.target.count("/")],
        "target": task.target,
        "seconds": seconds,
        "largest_change": largest_change(patch.relative_change),
        "groups": groups,
        "groups_4bit": groups_4bit,
    }


def _groups(request: ForgetRequest, before: Scores, after: VLM) -> dict[str, dict[str, list[float]]]:
    summary = summarize(request, before, score_records(after, request.hierarchy.records))
    return {
        group: {split: _measures(summary[group][split].to_json()) for split in SPLITS}
        for group in GROUPS
        if summary[group]
    }


def _measures(entry: Mapping[str, Any]) -> list[float]:
    """The values of `MEASURES`."""
    names = (name.split() for name in MEASURES)
    return [entry[name[0]] if len(name) == 1 else entry[name[0]][name[1]] for name in names]


def random_update(source: Checkpoint, relative_change: Mapping[str, float]) -> dict[str, Tensor]:
    """Random changes of the weights of the same norms: does the direction matter, or the damage? Not of biases, which
    are near zero at first: what gates make of them is many times their norm."""
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, size in relative_change.items():
        old = source.read(name).double()
        if old.dim() < 2:
            continue
        noise = torch.randn(old.shape, generator=generator, dtype=torch.float64)
        tensors[name] = old + noise * size * torch.linalg.norm(old) / torch.linalg.norm(noise)
    return tensors


def targets(hierarchy: Hierarchy) -> dict[str, list[str]]:
    """Every patient, and five of each other level, spread over the hospital by a seed."""
    draw = random.Random(SEED)
    by_level = {level: [str(node) for node in hierarchy.nodes if node.level == level] for level in LEVELS}
    return {
        level: nodes if level == "patient" else sorted(draw.sample(nodes, TARGETS_PER_LEVEL))
        for level, nodes in by_level.items()
    }


def run(tasks: Sequence[Task], workers: int, known: Mapping[str, DemoRow]) -> list[DemoRow]:
    """A row for each task: the known one, or measured now."""
    rows, missing = dict(known), [task for task in tasks if task.key not in known]

    def then(row: DemoRow) -> Sequence[schedule.Task]:
        rows[key_of(row)] = row
        shown = ", ".join(f"{group} {value(row, group):.2f}" for group in GROUPS if row["groups"].get(group))
        print(f"{len(rows) - len(known)}/{len(missing)} {row['method']} {row['target']}: {shown}", flush=True)
        return ()

    def failed(error: BaseException) -> None:
        raise error

    with schedule.Pool(workers) as pool:
        pool.run([schedule.Task(0, partial(measure, task), then, failed) for task in missing])
    return [rows[task.key] for task in tasks]


def main(
    workers: Annotated[int, typer.Option(help="Processes; each loads the demo's model.")] = 2,
    json_file: Annotated[Path, typer.Option("--json", help="File for the rows.")] = RESULTS / "demo.json",
    resume: Annotated[bool, typer.Option("--resume", help="Keep the rows that are there already.")] = False,
    most: Annotated[int | None, typer.Option("--targets", help="Of each level, at most; by default all.")] = None,
    levels: Annotated[list[str] | None, typer.Option(help="By default all.")] = None,
    grid_size: Annotated[int, typer.Option("--grid", help="Settings tried for the published method.")] = len(GRID),
    retain_weight: Annotated[float | None, typer.Option(help="Of the linear edit; by default found by trials.")] = None,
) -> None:
    """Measure all of it."""
    known = {key_of(row): row for row in known_rows(json_file)} if resume else {}
    by_level = targets(demo_model().hierarchy)
    nodes = [node for level in levels or LEVELS for node in by_level[level][:most]]
    some = random.Random(SEED).sample(by_level["patient"], GRID_PATIENTS)[:most]
    grid = run(
        [Task("chip grid", chip, span, node, four_bits=False) for chip, span in GRID[:grid_size] for node in some],
        workers,
        known,
    )
    best = best_of_grid(grid)
    layers = best.pop("layers")
    shielded = Shielded() if retain_weight is None else Shielded(retain_weight=retain_weight)
    methods: list[tuple[str, Method, str | None, list[str]]] = [
        (DEFAULT.name, DEFAULT(), None, nodes),
        ("shielded", shielded, None, nodes),
        ("control", shielded, None, some),
        ("chip", Chip(), None, nodes),
        ("chip best", Chip(**best), layers, nodes),
    ]
    tasks = [Task(name, method, span, node) for name, method, span, of_it in methods for node in of_it]
    rows = run(tasks, workers, known)
    store_rows(json_file, COLUMNS, [*rows, *grid], default_device(), measures=MEASURES)
    print(f"the best of the grid: {best}, layers {layers}")
    show(rows)


if __name__ == "__main__":
    typer.run(main)
