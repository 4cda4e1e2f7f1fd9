"""How long it takes to collect an edit's statistics, and in how much memory, against the plain way.

    python -m benchmarks.collect [--rounds 5] [--images 16] [--records 2000] [--device cpu] [--json FILE]

The model is a Qwen2.5-VL with random weights in fp32: 256 image tokens, hidden size 512, 8 layers, and a head with the
same share of the parameters as in the 7B model. A scan has 8 questions; the target is a patient. Every second
institution words its questions differently, so that not all of the rest is asked what the target is.

The plain way is what public code does: node by node of those that the method compares, full forward passes with labels
in padded batches of 4 in the order of the file, and a hook at each site that keeps all it sees on the CPU; moments are
taken at the end. Passing each record once and taking the nodes from that is faster, and measured too. The ways take
turns, and have to find the same moments; all are of the model as it was. For `shielded` ours takes the means by word
and place too, which the plain way is let off. The whole edit has its shield given: to find one is to ask questions.

Memory is the peak of a process of its own less what it held when the model was loaded (Linux only). The plain way's
would fit into few machines for so many records: it is what its hooks keep for fewer, scaled.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, cast

import torch
import typer
from PIL import Image
from torch import Tensor, nn

from benchmarks.models import QUESTIONS_PER_IMAGE, Shape, Vision, conversation, write_checkpoint, write_records
from benchmarks.patch import peak_memory
from benchmarks.rows import Row, row, show, store
from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.kernels.gram import symmetrize_
from chip.methods import Chip, Method, Shielded
from chip.methods.apply import default_modules, edit_model
from chip.methods.shielded import ShieldedStatistics
from chip.model.loading import VLM, load_vlm
from chip.model.target_modules import TargetModule

SHAPE = Shape(8, 512, 1408, 8, 8, 4096, Vision(4, 256, 704, 4))
SIDE = 448  # pixels: 256 image tokens
TARGET = "patient_1"
PLAIN_BATCH = 4
SAME = 1e-4  # relative, Frobenius

METHODS: dict[str, Method] = {"chip": Chip(), "shielded": Shielded(retain_weight=8.0)}

PARTS = ("beginning", "image", "question", "answer")
"""Of a record, in the order of its tokens; an answer has the token before it too, from which it is said."""

Moments = dict[tuple[str, str], Tensor]
"""(site, node) -> the mean of its records' activations (chip), or of x xᵀ over their tokens, where every part of a
record counts alike (shielded)."""


@dataclass(frozen=True)
class Subject:
    """A model as it was loaded, and its records: fresh for each run, so that nothing is left of the one before."""

    source: Checkpoint
    vlm: VLM
    request: ForgetRequest

    @classmethod
    def load(cls, folder: Path, device: str) -> Subject:
        hierarchy = Hierarchy(read_records(folder / "records.jsonl"))
        request = ForgetRequest.of(hierarchy, [TARGET])
        return cls(Checkpoint.open(folder / "ckpt"), load_vlm(folder / "ckpt", device), request)


class Looking:
    """An operator that edits nothing, and shows the statistics that it was given to somebody else."""

    def __init__(self, operator: Method, see: Callable[[Any], None]) -> None:
        self._operator, self._see = operator, see

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)

    def update(self, weight: Tensor, bias: Tensor | None, statistics: Any) -> None:
        self._see(statistics)


def pass_of_chip(subject: Subject, operator: Method, see: Callable[[Any], None] = lambda _: None) -> None:
    """Ours: everything up to the operator's solutions."""
    looking = cast(Method, Looking(operator, see))
    edit_model(subject.vlm, subject.source, looking, subject.request, default_modules(subject.vlm, operator))


def by_chip(subject: Subject, operator: Method) -> Moments:
    """What ours finds, site by site."""
    seen: list[dict[str, Tensor]] = []
    pass_of_chip(subject, operator, lambda statistics: seen.append(_by_node(statistics)))
    target_modules = default_modules(subject.vlm, operator)
    return {
        (module.name, node): moment
        for module, each in zip(target_modules, seen, strict=True)
        for node, moment in each.items()
    }


def _by_node(statistics: Any) -> dict[str, Tensor]:
    """The moments in chip's statistics, by the names that `compared` gives to nodes."""
    if isinstance(statistics, ShieldedStatistics):
        groups = {"forget": statistics.forget, "shield": statistics.retain_weight}
        return {node: symmetrize_(each.upper) / each.count for node, each in groups.items()}
    found = dict(zip(("|forget|", "|retained|"), statistics.magnitude.mean, strict=True))
    for number, pair in enumerate(zip(statistics.child.mean, statistics.around.mean, strict=True)):
        found[f"child {number}"], found[f"around {number}"] = pair
    return found


def compared(request: ForgetRequest, operator: Method) -> dict[str, list[int]]:
    """The nodes that a method compares, as indices of records; of those in bars it wants the mean of magnitudes."""
    split, (target,) = request.partition, request.partition.targets
    if isinstance(operator, Shielded):
        alike = _alike(request)
        rest = [i for i in split.retain_other if i not in alike]
        return {"forget": list(split.forget), "siblings": list(split.siblings), "alike": alike, "other": rest}
    nodes = {"|forget|": list(split.forget), "|retained|": sorted(split.retained)}
    for number, child in enumerate(request.hierarchy.children(target)):
        nodes[f"child {number}"] = request.hierarchy.records_of(child)
        nodes[f"around {number}"] = list(split.siblings)  # studies of the other patients
    return nodes


def _alike(request: ForgetRequest) -> list[int]:
    """Of the rest, the records with a question or an answer of the target's; all spell these alike here."""
    records, split = request.hierarchy.records, request.partition
    asked, said = {records[i].question for i in split.forget}, {records[i].answer for i in split.forget}
    return [i for i in split.retain_other if records[i].question in asked or records[i].answer in said]


@dataclass(frozen=True)
class Kept:
    """What the hooks of the plain way kept of one pass."""

    activations: dict[TargetModule, list[Tensor]]
    """A tensor for each batch: (B, T, d); in the connector, (image tokens of the batch, d)."""
    batches: list[tuple[Sequence[int], list[list[int]]]]
    """Records of each batch, and how many tokens each one's `PARTS` have."""

    @property
    def bytes(self) -> int:
        return sum(each.nbytes for batches in self.activations.values() for each in batches)

    def parts(self, module: TargetModule) -> dict[int, dict[str, Tensor]]:
        """Record -> the tokens (n, d) of each part that the site sees: in the connector, of the image."""
        found: dict[int, dict[str, Tensor]] = {}
        for seen, (records, lengths) in zip(self.activations[module], self.batches, strict=True):
            if module.layer is None:
                images = torch.split(seen, [each[PARTS.index("image")] for each in lengths])
                found |= {i: {"image": image} for i, image in zip(records, images, strict=True)}
            else:
                for i, row, each in zip(records, seen, lengths, strict=True):
                    real = row[: sum(each)]
                    found[i] = dict(zip(PARTS, torch.split(real, each), strict=True))
        return found


def by_plain(subject: Subject, operator: Method, each_once: bool = False) -> Moments:
    """Node by node; or all records once, and the nodes from that."""
    nodes, target_modules = compared(subject.request, operator), default_modules(subject.vlm, operator)
    if each_once:
        kept = [keep(subject, sorted(set().union(*nodes.values())), operator)] * len(nodes)
    else:
        kept = [keep(subject, indices, operator) for indices in nodes.values()]
    found: Moments = {}
    for (node, indices), each in zip(nodes.items(), kept, strict=True):
        for module in target_modules:
            of = each.parts(module)
            records = [of[i] for i in indices]
            if isinstance(operator, Chip):
                pooled = torch.stack([_pooled(parts, operator.alpha) for parts in records])
                found[module.name, node] = (pooled.abs() if node.startswith("|") else pooled).mean(0)
            else:
                left_out = [_left_out(subject.request, node, i) for i in indices]
                found[module.name, node] = _second_moment(records, left_out)
    if isinstance(operator, Shielded):
        own = {"siblings": operator.neighbor_weight, "alike": operator.neighbor_weight, "other": 0.0}
        staying, everyones = sum(len(nodes[node]) for node in own), 1 - sum(own.values())
        for module in target_modules:
            shared = [
                (share + everyones * len(nodes[node]) / staying) * found.pop((module.name, node))
                for node, share in own.items()
            ]
            found[module.name, "shield"] = torch.stack(shared).sum(0)
    return found


def _pooled(parts: Mapping[str, Tensor], alpha: float) -> Tensor:
    image, others = parts["image"], [part for name, part in parts.items() if name != "image"]
    return alpha * image.mean(0) + (1 - alpha) * torch.cat(others).mean(0) if others else image.mean(0)


def _second_moment(records: Sequence[Mapping[str, Tensor]], left_out: Sequence[set[str]]) -> Tensor:
    """The mean of x xᵀ (d, d): first over each part (n, d) of a record, then over all parts that are not left out."""
    pairs = zip(records, left_out, strict=True)
    counted = [part for parts, out in pairs for name, part in parts.items() if name not in out]
    x = torch.cat([part / len(part) ** 0.5 for part in counted])
    return x.T @ x / len(counted)


def _left_out(request: ForgetRequest, node: str, index: int) -> set[str]:
    """What of a record is not its node's alone: of the target the beginning, and an image that others show too."""
    if node != "forget":
        return set()
    records = request.hierarchy.records
    shown = any(records[i].image == records[index].image for i in request.partition.retained)
    return {"beginning", "image"} if shown else {"beginning"}


def keep(subject: Subject, indices: Sequence[int], operator: Method) -> Kept:
    """Pass the records, and keep the sites' outputs (chip) or inputs (shielded)."""
    kept = Kept({module: [] for module in default_modules(subject.vlm, operator)}, [])

    def hook(module: TargetModule, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept.activations[module].append((output if isinstance(operator, Chip) else args[0]).detach().cpu())

    def see(chosen: Sequence[int], ids: Tensor) -> None:
        images = (ids == subject.vlm.model.config.image_token_id).sum(1).tolist()
        records = [subject.request.hierarchy.records[i] for i in chosen]
        lengths = [part_lengths(subject.vlm, *each) for each in zip(records, images, strict=True)]
        kept.batches.append((chosen, lengths))

    with ExitStack() as hooks:
        for module in kept.activations:
            handle = subject.vlm.model.get_submodule(module.name).register_forward_hook(partial(hook, module))
            hooks.callback(handle.remove)
        plain_pass(subject, indices, see)
    return kept


def part_lengths(vlm: VLM, record: Record, image: int) -> list[int]:
    """How many tokens each of `PARTS` has, where the image has so many."""
    text, tokenizer = conversation(vlm.processor, record), vlm.processor.tokenizer
    tokens, prompt = tokenizer([text, text[: text.rindex(record.answer)]])["input_ids"]
    beginning, before = tokens.index(vlm.model.config.image_token_id), len(prompt) - 1  # one token is the image here
    return [beginning, image, before - beginning - 1, len(tokens) - before]


@torch.no_grad()
def plain_pass(
    subject: Subject, indices: Sequence[int], see: Callable[[Sequence[int], Tensor], None] = lambda *_: None
) -> None:
    """Records through the whole model with labels, in the order of the file.

    Args:
        see: is told of each batch who is in it, and their tokens (B, T), padded on the right.
    """
    processor, model = subject.vlm.processor, subject.vlm.model
    for start in range(0, len(indices), PLAIN_BATCH):
        chosen = indices[start : start + PLAIN_BATCH]
        records = [subject.request.hierarchy.records[i] for i in chosen]
        texts = [conversation(processor, record) for record in records]
        images = [[Image.open(cast(Path, record.image)).convert("RGB")] for record in records]
        inputs = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
        inputs = inputs.to(model.device)
        real = inputs["attention_mask"].bool()
        model(**inputs, labels=inputs["input_ids"].where(real, -100))
        see(chosen, inputs["input_ids"])


def edit(subject: Subject) -> None:
    operator = METHODS["shielded"]
    edit_model(subject.vlm, subject.source, operator, subject.request, default_modules(subject.vlm, operator))


def full_pass(subject: Subject) -> None:
    plain_pass(subject, range(len(subject.request.hierarchy.records)))


WAYS: dict[str, Callable[[Subject], Moments | None]] = {
    **{f"{name}: ours": partial(by_chip, operator=operator) for name, operator in METHODS.items()},
    **{f"{name}: plain": partial(by_plain, operator=operator) for name, operator in METHODS.items()},
    "chip: each once": partial(by_plain, operator=METHODS["chip"], each_once=True),
    "edit": edit,
    "full pass": full_pass,
}


def seconds_of(way: str, folder: Path, device: str, moments: dict[str, Moments]) -> float:
    """Of one run; the moments it found are put beside those of other ways."""
    subject = Subject.load(folder, device)
    _synchronise(device)
    start = time.perf_counter()
    found = WAYS[way](subject)
    _synchronise(device)
    seconds = time.perf_counter() - start
    if found is not None:
        moments[way] = found
    return seconds


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def check_same(ours: Moments, plain: Moments) -> None:
    """A benchmark of something wrong is worth nothing.

    Raises:
        SystemExit: the ways have found different moments.
    """
    if ours.keys() != plain.keys():
        raise SystemExit(f"only one way has found {sorted(ours.keys() ^ plain.keys())}")
    for key, mine in ours.items():
        theirs = plain[key].to(mine)
        error = float(torch.linalg.norm(mine - theirs) / torch.linalg.norm(theirs))
        if not error <= SAME:
            raise SystemExit(f"{key}: the two ways differ by {error:.1e}")


def memory_of_chip(folder: Path, name: str, device: str) -> float:
    """Bytes that our pass takes beyond the loaded model, on the host and on a GPU: in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.collect", "--measure", name, "--folder", str(folder)]
    done = subprocess.run([*command, "--device", device], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(folder: Path, name: str, device: str) -> None:
    """In the process of its own: print the bytes."""
    subject = Subject.load(folder, device)
    on_gpu = device.startswith("cuda")
    before = _resident() + (torch.cuda.memory_allocated() if on_gpu else 0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is not the pass's
    pass_of_chip(subject, METHODS[name])
    print(peak_memory() + (torch.cuda.max_memory_allocated() if on_gpu else 0) - before)


def _resident() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def memory_rows(small: Path, large: Path, device: str) -> list[Row]:
    rows = []
    count = len(read_records(large / "records.jsonl"))
    for name, operator in METHODS.items():
        subject = Subject.load(small, device)
        few = range(len(subject.request.hierarchy.records))
        kept = keep(subject, few, operator).bytes * count / len(few)
        case = f"{name}: peak memory, {count} records; plain: kept by hooks for {len(few)}, scaled"
        rows.append(row(case, memory_of_chip(large, name, device) / 1e6, kept / 1e6, "MB", device))
    return rows


def main(
    rounds: Annotated[int, typer.Option(help="Runs of each way; medians are reported.")] = 5,
    images: Annotated[int, typer.Option(min=16, help="Scans that are timed, with 8 records each.")] = 16,
    records: Annotated[int, typer.Option(help="How many to measure memory with.")] = 2000,
    device: Annotated[str, typer.Option(help="Where the model runs.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the rows go.")] = None,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
    measured: Annotated[str | None, typer.Option("--measure", hidden=True)] = None,
) -> None:
    """Measure all ways in turn."""
    if folder is not None and measured is not None:
        measure(folder, measured, device)
        return
    with tempfile.TemporaryDirectory(prefix="chip-benchmark-") as scratch:
        small, large = Path(scratch) / "small", Path(scratch) / "large"
        write_checkpoint(small / "ckpt", SHAPE, dtype=torch.float32)
        write_records(small, images, SIDE, own_words=True)
        write_records(large, records // QUESTIONS_PER_IMAGE, SIDE, own_words=True)
        (large / "ckpt").symlink_to(small / "ckpt")
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            moments: dict[str, Moments] = {}
            for way in WAYS:
                seconds[way].append(seconds_of(way, small, device, moments))
            for name in METHODS:
                check_same(moments[f"{name}: ours"], moments[f"{name}: plain"])
            check_same(moments["chip: ours"], moments["chip: each once"])
        memory = memory_rows(small, large, device)
    typical = {way: median(each) for way, each in seconds.items()}
    count = images * QUESTIONS_PER_IMAGE
    pairs = {
        f"chip: statistics of {count} records": ("chip: ours", "chip: plain"),
        f"chip: statistics of {count} records; plain: each record once": ("chip: ours", "chip: each once"),
        f"shielded: statistics of {count} records": ("shielded: ours", "shielded: plain"),
        f"shielded: whole edit with a given shield; plain: one pass of {count} records": ("edit", "full pass"),
    }
    rows = [row(case, typical[ours], typical[plain], "s", device) for case, (ours, plain) in pairs.items()]
    show("Collecting statistics", [*rows, *memory])
    store(json_file, [*rows, *memory])


if __name__ == "__main__":
    typer.run(main)
