"""Request after request: does what was forgotten first stay forgotten?

    python -m benchmarks.sequences [--requests 10] [--method shielded]... [--seconds 120] --cache DIR

Some patients of the demo are forgotten one after the other, in an order drawn from a seed. Each edit is made of the
folder that the one before has written, with the records of those who are left: the earlier ones are destroyed, as is
the original. Then everything is asked. The bound is the original, edited once with all of them together.

Rows are written as they come. A run goes on where the last one stopped: the folder written last is in the cache.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import chain
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure
from PIL import Image

import chip
from benchmarks.reporting import RESULTS, device_name, print_table, read_rows, versions, write_rows
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.measure import measure
from chip.cli.console import quiet_libraries
from chip.data.hierarchy import Hierarchy, Node
from chip.data.readers import read_records
from chip.demo import write_demo
from chip.methods import make_method
from chip.model.loading import load_vlm
from chip.model.scoring import Scores, score_records

SEED = 0
SEQUENCE, UNION = "sequence", "union"
COLUMNS = (
    *("method", "version", "seed", "requests", "kind", "step", "target", "seconds"),
    *("change", "distance", "targets", "before", "siblings", "others"),
)
"""`change` and `distance`: ‖W_n − W_{n−1}‖ / ‖W_0‖ and ‖W_n − W_0‖ / ‖W_0‖ over all tensors. `targets`: what is
answered of each patient of the sequence, in their order; `before`: of the one of this step, right before it;
`siblings`: of those of this step's who are in no request; `others`: of all who are in none."""
Row = dict[str, Any]


@dataclass(frozen=True)
class World:
    """The demo in a folder, and whom a sequence forgets."""

    folder: Path
    requests: int
    seed: int

    @property
    def original(self) -> Path:
        return self.folder / "ckpt"

    @cached_property
    def hierarchy(self) -> Hierarchy:
        return Hierarchy(read_records(self.folder / "records.jsonl"))

    @cached_property
    def order(self) -> tuple[Node, ...]:
        """The targets, drawn from all patients."""
        patients = [node for node in self.hierarchy.nodes if node.level == "patient"]
        return tuple(random.Random(self.seed).sample(patients, self.requests))

    def records_without(self, gone: Iterable[Node]) -> Path:
        """A records file beside the pictures, in which nobody of `gone` is left."""
        ids = {node.id for node in gone}
        lines = (self.folder / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        file = self.folder / f"without_{len(ids)}.jsonl"
        file.write_text("".join(line for line in lines if json.loads(line).get("patient") not in ids), encoding="utf-8")
        return file

    def ask(self, folder: Path) -> Scores:
        return score_records(load_vlm(folder, "cpu"), self.hierarchy.records)

    def indices(self, nodes: Iterable[Node]) -> list[int]:
        return list(chain.from_iterable(map(self.hierarchy.records_of, nodes)))

    def siblings(self, target: Node) -> list[int]:
        stay = (node for node in self.hierarchy.children(target.parent) if node not in self.order)
        return self.indices(stay)

    @cached_property
    def others(self) -> list[int]:
        requested = set(self.indices(self.order))
        return [index for index in range(len(self.hierarchy.records)) if index not in requested]


def answered(world: World, scores: Scores, indices: Sequence[int]) -> list[float]:
    """Exact match of the trained and of the paraphrased questions, and the mean answer probability of both."""
    if not indices:
        return []
    records, exact = world.hierarchy.records, scores.exact_match
    splits = ([float(exact[i]) for i in indices if records[i].held_out == held_out] for held_out in (False, True))
    figures = (*map(mean, splits), mean(float(scores.answer_probability[i]) for i in indices))
    return [round(figure, 4) for figure in figures]


def distance(a: Path, b: Path, original: Path) -> float:
    """‖W_b − W_a‖ over all tensors, as a share of the original's ‖W‖."""
    first, second, zero = map(Checkpoint.open, (a, b, original))
    change = (measure(first.stored(n), second.stored(n), spectrum=False).change for n in first.entries)
    norm = (float(zero.read(name).double().norm()) for name in zero.entries)
    return sqrt(sum(value**2 for value in change)) / sqrt(sum(value**2 for value in norm))


def edit(world: World, source: Path, out: Path, targets: Sequence[Node], records: Path, method: str) -> float:
    """Seconds that it took. It is written whatever it costs, and whatever is left: that is what is measured."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    chip.edit(
        source,
        [str(target) for target in targets],
        records=records,
        out=out,
        method=make_method(method, {}),
        device="cpu",
        accept=True,
        force=True,
    )
    return time.monotonic() - start


@dataclass(frozen=True)
class Run:
    """One method's sequence, and its bound."""

    world: World
    method: str
    cache: Path

    @property
    def key(self) -> Row:
        version = make_method(self.method, {}).version
        return {"method": self.method, "version": version, "seed": self.world.seed, "requests": self.world.requests}

    def _folder(self, step: int) -> Path:
        return self.world.original if step == 0 else self.cache / f"{self.method}_{self.world.seed}" / f"{step:02}"

    def missing(self, known: Sequence[Row]) -> Iterator[Row]:
        """The rows that are not known, each computed when it is asked for: from where the cache can go on."""
        own = [row for row in known if self.key.items() <= row.items()]
        steps = {row["step"] for row in own if row["kind"] == SEQUENCE}
        done = max((step for step in steps if self._folder(step).is_dir()), default=0)
        if len(steps) < self.world.requests:
            for step in range(done + 1, self.world.requests + 1):
                yield self._step(step)
        if not any(row["kind"] == UNION for row in own):
            yield self._union()

    def _step(self, step: int) -> Row:
        world, before, after = self.world, self._folder(step - 1), self._folder(step)
        target, gone = world.order[step - 1], world.order[: step - 1]
        known = answered(world, world.ask(before), world.indices([target]))
        seconds = edit(world, before, after, [target], world.records_without(gone), self.method)
        row = self._row(SEQUENCE, step, target, before, after, seconds, known)
        if step > 1:
            shutil.rmtree(before)
        return row

    def _union(self) -> Row:
        world, out = self.world, self._folder(self.world.requests).with_name("union")
        known = answered(world, world.ask(world.original), world.indices(world.order))
        seconds = edit(world, world.original, out, world.order, world.records_without([]), self.method)
        return self._row(UNION, world.requests, world.order[-1], world.original, out, seconds, known)

    def _row(
        self, kind: str, step: int, target: Node, before: Path, after: Path, seconds: float, known: list[float]
    ) -> Row:
        world = self.world
        scores = world.ask(after)
        return {
            **self.key,
            "kind": kind,
            "step": step,
            "target": str(target),
            "seconds": seconds,
            "change": distance(before, after, world.original),
            "distance": distance(world.original, after, world.original),
            "targets": [answered(world, scores, world.indices([node])) for node in world.order],
            "before": known,
            "siblings": answered(world, scores, world.siblings(target)),
            "others": answered(world, scores, world.others),
        }


WORDINGS = {"trained": 0, "paraphrased": 1, "probability": 2}


def came_back(rows: Sequence[Row], wording: str = "paraphrased") -> list[list[float]]:
    """For each step, what each earlier target is answered above its answers right after its own edit."""
    at, steps = WORDINGS[wording], sorted((row for row in rows if row["kind"] == SEQUENCE), key=lambda row: row["step"])
    own = [row["targets"][row["step"] - 1][at] for row in steps]
    return [[row["targets"][i][at] - own[i] for i in range(row["step"] - 1)] for row in steps]


def table_of(rows: Sequence[Row]) -> Iterator[list[str]]:
    """A line for each step, and one for the union."""
    steps = sorted((row for row in rows if row["kind"] == SEQUENCE), key=lambda row: row["step"])
    back = came_back(rows)
    for row, above in zip(steps, back, strict=True):
        earlier = [values[1] for values in row["targets"][: row["step"]]]
        more = f"{mean(above):+.2f} ({max(above):+.2f})" if above else "–"
        yield [*_cells(row, earlier), more]
    yield from ([*_cells(row, [values[1] for values in row["targets"]]), "–"] for row in rows if row["kind"] == UNION)


def _cells(row: Row, earlier: Sequence[float]) -> list[str]:
    siblings = f"{row['siblings'][1]:.2f}" if row["siblings"] else "–"
    return [
        row["method"],
        f"{row['step']}" if row["kind"] == SEQUENCE else UNION,
        f"{row['before'][1]:.2f}",
        f"{earlier[0]:.2f}",
        f"{mean(earlier):.2f} ({max(earlier):.2f})",
        siblings,
        f"{row['others'][1]:.3f}",
        f"{row['change']:.3f}",
        f"{row['distance']:.3f}",
        f"{row['seconds']:.0f}",
    ]


def show(rows: Sequence[Row]) -> None:
    """Print the tables, one a method."""
    columns = ("method", "request", "before", "first", "all so far (worst)", "siblings", "others")
    norms = ("‖ΔW‖", "‖W_n − W_0‖", "seconds", "came back (worst)")
    for own in by_method(rows).values():
        print_table("exact match, paraphrased questions", (*columns, *norms), table_of(own), {0}, width=150)


def by_method(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return methods


def draw(rows: Sequence[Row], file: Path) -> None:
    """For each method what others keep, and what is left of all targets so far, over the requests."""
    figure = Figure((5, 2.8), layout="constrained")
    axis = figure.subplots()
    for number, (method, own) in enumerate(by_method(rows).items()):
        steps = sorted((row for row in own if row["kind"] == SEQUENCE), key=lambda row: row["step"])
        numbers, color = [row["step"] for row in steps], f"C{number}"
        left = [mean(values[1] for values in row["targets"][: row["step"]]) for row in steps]
        axis.plot(numbers, [row["others"][1] for row in steps], color=color, marker=".", label=f"{method}: others")
        axis.plot(numbers, left, color=color, marker=".", linestyle="--", label=f"{method}: targets so far")
    axis.set_xlabel("requests", fontsize=8)
    axis.set_ylabel("exact match, paraphrased", fontsize=8)
    axis.set_ylim(-0.03, 1.03)
    axis.tick_params(labelsize=7)
    figure.legend(loc="outside lower center", ncols=len(by_method(rows)), fontsize=6)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=80)
    with Image.open(drawn) as image:  # a few colors take a third of the bytes
        image.convert("RGB").quantize(32).save(file, optimize=True)


def main(
    cache: Annotated[Path, typer.Option(help="Folder for the demo and the edited models.")],
    requests: Annotated[int, typer.Option(min=2, help="Patients, one after the other.")] = 10,
    method: Annotated[list[str] | None, typer.Option(help="By default shielded; repeat for several.")] = None,
    seed: Annotated[int, typer.Option(help="Of the patients and their order.")] = SEED,
    seconds: Annotated[float | None, typer.Option(help="After which no edit is begun; by default all is run.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="File for the rows.")] = RESULTS / "sequences.json",
    picture: Annotated[Path, typer.Option(help="The curves, as PNG.")] = RESULTS / "sequences.png",
) -> None:
    """Run what is missing, draw all, and print the table."""
    quiet_libraries()
    start = time.monotonic()
    if not (cache / "records.jsonl").exists():
        write_demo(cache)
    world = World(cache, requests, seed)
    rows = read_rows(json_file)[1] if json_file.exists() else []
    for name in method or ["shielded"]:
        for row in Run(world, name, cache).missing(rows):
            same = ("method", "version", "seed", "requests", "kind", "step")
            rows = [*(old for old in rows if any(old[key] != row[key] for key in same)), row]
            lines = [[each[column] for column in COLUMNS] for each in rows]
            write_rows(json_file, COLUMNS, lines, device=device_name("cpu"), versions=versions())
            if seconds is not None and time.monotonic() - start > seconds:
                break
    draw(rows, picture)
    show(rows)


if __name__ == "__main__":
    typer.run(main)
