"""How long it takes to collect an edit's statistics, and in how much memory, against the plain way.

    python -m benchmarks.collect [--rounds 5] [--seconds N] [--quick] [--images 16] [--records 2000] [--device cpu]
                                 [--json FILE]

The model is a Qwen2.5-VL with random weights in fp32: 256 image tokens, hidden size 512, 8 layers, and a head with the
same share of the parameters as in the 7B model. A scan has 8 questions; the target is a patient. Every second
institution words its questions differently, so that not all of the others is asked what the target is.

The plain way is what public code does: node by node of those that the method compares, full forward passes with labels
in padded batches of 4 in the order of the file, and a hook at each module that keeps all it sees on the CPU; moments
are taken at the end. Passing each record once and taking the nodes from that is faster, and measured too. The ways take
turns, and have to find the same moments; all are of the model as it was. For `shielded` ours takes the means by word
and place too, which the plain way is let off. The whole edit has its retain weight given: to find one is to ask
questions.

A round of all ways takes some three minutes on two cores, and on a GPU not much less: the plain ways decode and scale
pictures and take moments on the CPU. `--quick` takes minutes on one core: one round with scans of half the side,
without the ways that pass node by node. `--seconds` begins no further round after so many.

Memory is the peak of a process of its own less what it held when the model was loaded (Linux only). The plain way's
would fit into few machines for so many records: it is what its hooks keep for fewer, scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.checkpoints import QUESTIONS_PER_IMAGE, write_checkpoint, write_records
from benchmarks.measuring import (
    in_own_process,
    median_seconds,
    peak_memory,
    reset_peak_memory,
    resident_memory,
    scratch_folder,
    seconds_of,
)
from benchmarks.plain import Moments, Subject, keep_activations, plain_moments, plain_pass
from benchmarks.qwen import Shape, VisionShape
from benchmarks.reporting import Device, JsonFile, Rounds, Timing, report
from chip.data.readers import read_records
from chip.methods import Chip, Method, Shielded
from chip.methods.apply import EditContext, default_modules
from chip.methods.patch import Solution, WeightEditor
from chip.methods.plans import edit_model
from chip.methods.shielded_statistics import ShieldedStatistics
from chip.model.target_modules import TargetModule
from chip.model.tokens import Statistics

SHAPE = Shape(8, 512, 1408, 8, 8, 4096, VisionShape(4, 256, 704, 4))
TINY_SHAPE = Shape(4, 64, 96, 2, 2, 2048, VisionShape(4, 64, 128, 2))
SIDE = 448  # pixels: 256 image tokens
SAME = 1e-4  # relative, Frobenius

METHODS: dict[str, Method] = {"chip": Chip(), "shielded": Shielded(retain_weight=8.0)}


def run_ours(subject: Subject, method: Method, observe: Callable[[Any], None] = lambda _: None) -> None:
    """Everything up to the method's solutions; statistics are shown to somebody else instead."""

    def show(
        _: WeightEditor, __: Method, statistics: Mapping[TargetModule, Statistics], *___: object
    ) -> list[Solution]:
        for each in statistics.values():
            observe(each)
        return []

    with patch.object(WeightEditor, "solve", show):
        edit(subject, method)


def our_moments(subject: Subject, method: Method) -> Moments:
    """The moments that our pass collects, module by module."""
    collected: list[dict[str, Tensor]] = []
    run_ours(subject, method, lambda statistics: collected.append(_by_node(statistics)))
    target_modules = default_modules(subject.vlm, method)
    return {
        (module.name, node): moment
        for module, moments in zip(target_modules, collected, strict=True)
        for node, moment in moments.items()
    }


def _by_node(statistics: Any) -> dict[str, Tensor]:
    """The moments in chip's statistics, by the names that `compared_nodes` gives to nodes."""
    if isinstance(statistics, ShieldedStatistics):
        sums = {"forget": statistics.forget, "shield": statistics.shield}
        return {node: moment.mean.dense() for node, moment in sums.items()}
    moments = dict(zip(("|forget|", "|retained|"), statistics.magnitude.mean, strict=True))
    for number, (child, around) in enumerate(zip(statistics.child.mean, statistics.around.mean, strict=True)):
        moments[f"child {number}"], moments[f"around {number}"] = child, around
    return moments


def edit(subject: Subject, method: Method = METHODS["shielded"]) -> None:
    context = EditContext(subject.vlm, subject.source)
    edit_model(context, method, subject.request, default_modules(subject.vlm, method))


def full_pass(subject: Subject) -> None:
    plain_pass(subject, range(len(subject.request.hierarchy.records)))


VARIANTS: dict[str, Callable[[Subject], Moments | None]] = {
    **{f"{name}: ours": partial(our_moments, method=method) for name, method in METHODS.items()},
    **{f"{name}: plain": partial(plain_moments, method=method) for name, method in METHODS.items()},
    "chip: each once": partial(plain_moments, method=METHODS["chip"], each_once=True),
    "edit": edit,
    "full pass": full_pass,
}
QUICK = ("chip: ours", "chip: each once", "edit", "full pass")
QUICK_RECORDS, QUICK_SIDE = 256, 224
SAME_MOMENTS = (("chip: ours", "chip: plain"), ("chip: ours", "chip: each once"), ("shielded: ours", "shielded: plain"))


def measure_time(variant: str, folder: Path, device: str, moments: dict[str, Moments]) -> float:
    """Seconds of one run; the moments that it found go into `moments`."""
    subject = Subject.load(folder, device)

    def run() -> None:
        result = VARIANTS[variant](subject)
        if result is not None:
            moments[variant] = result

    seconds = seconds_of(run, device)
    Console(stderr=True, highlight=False).print(f"{variant}: {seconds:.1f} s")
    for ours, plain in SAME_MOMENTS:
        if variant == plain:  # the last of the two to run
            check_same(moments[ours], moments[plain])
    return seconds


def check_same(ours: Moments, plain: Moments) -> None:
    """A benchmark of something wrong is worth nothing.

    Raises:
        SystemExit: the moments differ.
    """
    if ours.keys() != plain.keys():
        raise SystemExit(f"only one of the two has the moments of {sorted(ours.keys() ^ plain.keys())}")
    for key, moment in ours.items():
        other = plain[key].to(moment)
        error = float(torch.linalg.norm(moment - other) / torch.linalg.norm(other))
        if not error <= SAME:
            raise SystemExit(f"{key}: the two differ by {error:.1e}")


def print_memory(folder: Path, name: str, device: str) -> None:
    """In a process of its own: bytes that our pass takes beyond the loaded model, on the host and on a GPU."""
    subject = Subject.load(folder, device)
    on_gpu = device.startswith("cuda")
    before = resident_memory() + (torch.cuda.memory_allocated() if on_gpu else 0)
    reset_peak_memory()  # the peak of loading is not the pass's
    run_ours(subject, METHODS[name])
    print(peak_memory() + (torch.cuda.max_memory_allocated() if on_gpu else 0) - before)


def memory_timings(small: Path, large: Path, device: str) -> list[Timing]:
    """Peak memory at the number of records in `large`; of the plain way, what its hooks keep of `small`, scaled."""
    timings = []
    count = len(read_records(large / "records.jsonl"))
    for name, method in METHODS.items():
        subject = Subject.load(small, device)
        few = range(len(subject.request.hierarchy.records))
        plain = keep_activations(subject, few, method).bytes * count / len(few)
        ours = in_own_process("collect", "--measure", name, "--folder", str(large), "--device", device)
        case = f"{name}: peak memory, {count} records; plain: kept by hooks for {len(few)}, scaled"
        timings.append(Timing(case, ours / 1e6, plain / 1e6, "MB"))
    return timings


def time_timings(small: Path, variants: Iterable[str], device: str, rounds: int, most: float) -> list[Timing]:
    """Seconds of each variant, next to what it is compared with; after `most` seconds no further round begins."""
    moments: dict[str, Moments] = {}
    runs = {name: partial(measure_time, name, small, device, moments) for name in variants}
    seconds = median_seconds(runs, rounds, most)
    count = len(read_records(small / "records.jsonl"))
    pairs = {
        f"chip: statistics of {count} records": ("chip: ours", "chip: plain"),
        f"chip: statistics of {count} records; plain: each record once": ("chip: ours", "chip: each once"),
        f"shielded: statistics of {count} records": ("shielded: ours", "shielded: plain"),
        f"shielded: whole edit with a given retain weight; plain: one pass of {count} records": ("edit", "full pass"),
    }
    return [
        Timing(case, seconds[ours], seconds[plain], "s")
        for case, (ours, plain) in pairs.items()
        if {ours, plain} <= seconds.keys()
    ]


def main(
    rounds: Rounds = 5,
    seconds: Annotated[float, typer.Option(help="After so many, no further round begins.")] = inf,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help=f"One round, without the ways node by node; {QUICK_RECORDS} records of {QUICK_SIDE} pixels."
        ),
    ] = False,
    images: Annotated[int, typer.Option(min=16, help="Scans that are timed, with 8 records each.")] = 16,
    records: Annotated[int, typer.Option(min=128, help="How many to measure memory with.")] = 2000,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A small model and small scans: shows that all of it runs.")
    ] = False,
    device: Device = "cpu",
    json_file: JsonFile = None,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
    measure: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure all variants in turn."""
    if folder is not None and measure is not None:
        print_memory(folder, measure, device)
        return
    shape, side = (TINY_SHAPE, 112) if tiny else (SHAPE, QUICK_SIDE if quick else SIDE)
    with scratch_folder() as scratch:
        small, large = scratch / "small", scratch / "large"
        write_checkpoint(small / "ckpt", shape, dtype=torch.float32)
        write_records(small, images, side, own_words=True)
        write_records(large, (QUICK_RECORDS if quick else records) // QUESTIONS_PER_IMAGE, side, own_words=True)
        (large / "ckpt").symlink_to(small / "ckpt")
        variants, rounds = (QUICK, 1) if quick else (tuple(VARIANTS), rounds)
        timings = time_timings(small, variants, device, rounds, seconds) + memory_timings(small, large, device)
    report("Collecting statistics", timings, device, json_file)


if __name__ == "__main__":
    typer.run(main)
