"""Request after request: does what was forgotten first stay forgotten, and what do the others pay?

    python -m benchmarks.sequences [--world demo] [--level patient] [--requests 10] [--edit ARGS]... --cache DIR

Nodes are forgotten one after the other, in an order drawn from a seed. Each edit is made of the folder that the one
before has written, with the records of those who are left: the earlier ones are destroyed, as is the original. Then
everything is asked. The bound is the original, edited once with all of them together.

Rows are written as they come. A run goes on where the last one stopped: the folder written last is in the cache.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

import chip
from benchmarks import crowded
from benchmarks.drawn.edits import EditArguments
from benchmarks.reporting import RESULTS, known_rows, print_table, save_picture, store_rows
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.measure import measure
from chip.cli.console import quiet_libraries
from chip.data.hierarchy import Hierarchy, Node
from chip.data.readers import read_records
from chip.demo import write_demo
from chip.methods import DEFAULT
from chip.model.loading import load_vlm
from chip.model.scoring import Scores, score_records

FORMER_DEFAULT = "shielded+gated_text"
"""The method of rows that name none."""
START, SEQUENCE, UNION = "start", "sequence", "union"
KEY = ("world", "level", "requests", "seed", "edit", "version", "kind", "step")
COLUMNS = (*KEY, "target", "setting", "seconds", "change", "distance", "targets", "siblings", "others")
"""`edit`: as `chip.edit` was called, or the default method's name; `setting`: the retain weight that a search chose.
Norms are shares of ‖W_0‖, `change` of W_n − W_{n−1}, `distance` of W_n − W_0. Exact match of paraphrased questions:
`targets` of each node of the sequence so far, in their order, and of all at the start; `siblings`: of those of this
step's who are in no request; `others`: of all who are in none, before it of their trained questions, behind it their
answers' mean probability."""
Row = dict[str, Any]


def _demo(folder: Path) -> tuple[Path, Path]:
    if not (folder / "records.jsonl").exists():
        write_demo(folder)
    return folder / "ckpt", folder / "records.jsonl"


WORLDS: Mapping[str, Callable[[Path], tuple[Path, Path]]] = {
    "demo": _demo,
    "crowded": partial(crowded.write_world, seed=2),
}
"""What makes a world in a folder, where it is missing, and says where its checkpoint and its records are."""


@dataclass(frozen=True)
class World:
    """A world in a folder, and whom a sequence forgets."""

    name: str
    level: str
    requests: int
    seed: int
    original: Path
    records_file: Path

    @cached_property
    def hierarchy(self) -> Hierarchy:
        return Hierarchy(read_records(self.records_file))

    @cached_property
    def order(self) -> tuple[Node, ...]:
        """The targets, drawn from all nodes of the level."""
        nodes = [node for node in self.hierarchy.nodes if node.level == self.level]
        return tuple(random.Random(self.seed).sample(nodes, self.requests))

    def records_without(self, gone: Sequence[Node]) -> Path:
        """A records file beside the pictures, in which nobody of `gone` is left."""
        lines = self.records_file.read_text(encoding="utf-8").splitlines(keepends=True)
        indices = set(self.indices(gone))
        file = self.records_file.with_name(f"{self.level}_without_{len(gone)}.jsonl")
        file.write_text("".join(line for i, line in enumerate(lines) if i not in indices), encoding="utf-8")
        return file

    def indices(self, nodes: Iterable[Node]) -> list[int]:
        return list(chain.from_iterable(map(self.hierarchy.records_of, nodes)))

    def ask(self, folder: Path, target: Node | None) -> Row:
        """What a model answers, of all targets, of the siblings of one, and of all others."""
        scores = score_records(load_vlm(folder, "cpu"), self.hierarchy.records)
        requested = set(self.indices(self.order))
        beside = () if target is None else self.hierarchy.children(target.parent)
        siblings = self.indices(node for node in beside if node not in self.order)
        others = [index for index in range(len(self.hierarchy.records)) if index not in requested]
        probability = mean(float(scores.answer_probability[i]) for i in others)
        return {
            "targets": [self._exact(scores, self.indices([node])) for node in self.order],
            "siblings": self._exact(scores, siblings) if siblings else None,
            "others": [self._exact(scores, others, False), self._exact(scores, others), round(probability, 4)],
        }

    def _exact(self, scores: Scores, indices: Iterable[int], held_out: bool = True) -> float:
        records = self.hierarchy.records
        return round(mean(float(scores.exact_match[i]) for i in indices if records[i].held_out == held_out), 3)


def distance(a: Path, b: Path, original: Path) -> float:
    """‖W_b − W_a‖ over all tensors, as a share of the original's ‖W‖."""
    first, second, zero = map(Checkpoint.open, (a, b, original))
    change = (measure(first.stored(n), second.stored(n), spectrum=False).change for n in first.entries)
    norm = (float(zero.read(name).double().norm()) for name in zero.entries)
    return sqrt(sum(value**2 for value in change)) / sqrt(sum(value**2 for value in norm))


@dataclass(frozen=True)
class Run:
    """One sequence of edits, and its bound."""

    world: World
    edit: EditArguments
    cache: Path

    @property
    def key(self) -> Row:
        world, method = self.world, self.edit.method or DEFAULT()
        of_world = {"world": world.name, "level": world.level, "requests": world.requests, "seed": world.seed}
        return {**of_world, "edit": self.edit.text or method.name, "version": method.version}

    def _folder(self, step: int) -> Path:
        name = f"{self.world.level}_{self.world.requests}_{self.world.seed}_{self.edit.text.replace(' ', '_')}"
        return self.world.original if step == 0 else self.cache / name / f"{step:02}"

    def missing(self, known: Sequence[Row]) -> Iterator[Row]:
        """The rows that are not known, each computed when it is asked for: from where the cache can go on."""
        own = [row for row in known if self.key.items() <= row.items()]
        steps = {row["step"] for row in own if row["kind"] == SEQUENCE}
        done = max((step for step in steps if self._folder(step).is_dir()), default=0)
        if not any(row["kind"] == START for row in own):
            of_start = {**self.key, "kind": START, "step": 0}
            yield {**dict.fromkeys(COLUMNS), **of_start, **self.world.ask(self.world.original, None)}
        for step in range(done + 1, self.world.requests + 1) if len(steps) < self.world.requests else ():
            yield self._step(SEQUENCE, step, self._folder(step - 1), self._folder(step))
            if step > 1:
                shutil.rmtree(self._folder(step - 1))
        if not any(row["kind"] == UNION for row in own):
            yield self._step(UNION, self.world.requests, self.world.original, self._folder(1).with_name("union"))

    def _step(self, kind: str, step: int, before: Path, after: Path) -> Row:
        """It is written whatever it costs, and whatever is left: that is what is measured."""
        world, gone = self.world, step - 1 if kind == SEQUENCE else 0
        shutil.rmtree(after, ignore_errors=True)
        options: dict[str, Any] = {"device": "cpu", "accept": True, "force": True, **self.edit.others}
        start = time.monotonic()
        report = chip.edit(
            before,
            [str(target) for target in world.order[gone:step]],
            records=world.records_without(world.order[:gone]),
            out=after,
            method=self.edit.method,
            **options,
        )
        asked = world.ask(after, world.order[step - 1])
        return {
            **self.key,
            "kind": kind,
            "step": step,
            "target": str(world.order[step - 1]),
            "setting": None if report.choice is None else report.choice.value,
            "seconds": time.monotonic() - start,
            "change": distance(before, after, world.original),
            "distance": distance(world.original, after, world.original),
            **asked,
            "targets": asked["targets"][:step],
        }


def steps_of(rows: Iterable[Row]) -> list[Row]:
    return sorted((row for row in rows if row["kind"] == SEQUENCE), key=lambda row: row["step"])


def came_back(rows: Sequence[Row]) -> list[list[float]]:
    """For each step, what each earlier target is answered above its answers right after its own edit."""
    steps = steps_of(rows)
    own = [row["targets"][row["step"] - 1] for row in steps]
    return [[row["targets"][i] - own[i] for i in range(row["step"] - 1)] for row in steps]


def table_of(rows: Sequence[Row]) -> Iterator[list[str]]:
    """A line for each step, and one for the union."""
    for row, above in zip(steps_of(rows), came_back(rows), strict=True):
        yield [*_cells(row), f"{mean(above):+.2f} ({max(above):+.2f})" if above else "–"]
    yield from ([*_cells(row), "–"] for row in rows if row["kind"] == UNION)


def _cells(row: Row) -> list[str]:
    targets = row["targets"][: row["step"]]
    shown = {"setting": "g", "siblings": ".2f", "change": ".3f", "distance": ".3f", "seconds": ".0f"}
    weight, siblings, *more = ("–" if row[name] is None else f"{row[name]:{form}}" for name, form in shown.items())
    left = (f"{targets[0]:.2f}", f"{mean(targets):.2f} ({max(targets):.2f})")
    first = f"{row['step']}" if row["kind"] == SEQUENCE else UNION
    return [first, weight, *left, siblings, f"{row['others'][1]:.3f}", *more]


def sequences(rows: Iterable[Row]) -> Mapping[str, list[Row]]:
    """Rows by what they have in common, in words."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        of_world = f"{row['world']}, {row['requests']} × {row['level']}"
        groups.setdefault(f"{of_world}: {row['edit'] or FORMER_DEFAULT}, version {row['version']}", []).append(row)
    return groups


def draw(rows: Sequence[Row], file: Path) -> None:
    """For each sequence what others keep, and what is left of all targets so far, over the requests."""
    figure = Figure((5, 3.4), layout="constrained")
    axis = figure.subplots()
    for number, (name, own) in enumerate(sequences(rows).items()):
        steps, color = steps_of(own), f"C{number}"
        numbers, left = [row["step"] for row in steps], [mean(row["targets"][: row["step"]]) for row in steps]
        others, label = [row["others"][1] for row in steps], name.partition(", version")[0]
        axis.plot(numbers, others, color=color, marker=".", label=label)
        axis.plot(numbers, left, color=color, marker=".", linestyle="--")
    axis.set_xlabel("requests (others: solid, targets so far: dashed)", fontsize=8)
    axis.set_ylabel("exact match, paraphrased", fontsize=8)
    axis.set_ylim(-0.03, 1.03)
    axis.tick_params(labelsize=7)
    figure.legend(loc="outside lower center", ncols=2, fontsize=6)
    save_picture(figure, file, dpi=80)


def main(
    cache: Annotated[Path, typer.Option(help="Folder for the world and the edited models.")],
    world: Annotated[str, typer.Option(help=" or ".join(WORLDS))] = "demo",
    level: Annotated[str, typer.Option(help="Whose requests they are: patient, study.")] = "patient",
    requests: Annotated[int, typer.Option(min=2, help="Nodes, one after the other.")] = 10,
    edit: Annotated[list[str] | None, typer.Option(help="Such as retain_weight=384, method=gated; repeat.")] = None,
    seed: Annotated[int, typer.Option(help="Of the nodes and their order.")] = 0,
    seconds: Annotated[float | None, typer.Option(help="After which no edit is begun; by default all is run.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="File for the rows.")] = RESULTS / "sequences.json",
    picture: Annotated[Path, typer.Option(help="The curves, as PNG.")] = RESULTS / "sequences.png",
) -> None:
    """Run what is missing, draw all, and print the tables."""
    quiet_libraries()
    start, folder = time.monotonic(), cache / world
    asked = World(world, level, requests, seed, *WORLDS[world](folder))
    rows = known_rows(json_file)
    for text in edit or [""]:
        for row in Run(asked, EditArguments.read(text), folder).missing(rows):
            rows = [*(old for old in rows if any(old[key] != row[key] for key in KEY)), row]
            store_rows(json_file, COLUMNS, rows, "cpu")
            if seconds is not None and time.monotonic() - start > seconds:
                break
    draw(rows, picture)
    for name, own in sequences(rows).items():
        titles = "request, weight, first, all so far (worst), siblings, others, ‖ΔW‖, ‖W_n − W_0‖, s, came back (worst)"
        print_table(name, titles.split(", "), table_of(own), {0}, width=150)


if __name__ == "__main__":
    typer.run(main)
