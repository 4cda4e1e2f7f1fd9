"""An edit's statistics in the plain way, as public code takes them: what `collect` is compared with.

Full forward passes with labels, in padded batches in the order of the file, node by node of those that the method
compares; a hook at each module keeps all that it sees on the CPU, and moments are taken at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.checkpoints import conversation
from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.record import Record
from chip.data.request import ForgetRequest
from chip.methods import Chip, Method, Shielded
from chip.methods.apply import default_modules
from chip.model.loading import VLM, load_vlm
from chip.model.target_modules import TargetModule

TARGET = "patient_1"
BATCH = 4
PARTS = ("prefix", "image", "question", "answer")
"""Of a record, in the order of its tokens; an answer has the token before it too, from which it is said."""

Moments = dict[tuple[str, str], Tensor]
"""(module, node) -> the mean of its records' activations (chip), or of x xᵀ over their tokens, where every part of a
record counts alike (shielded)."""


@dataclass(frozen=True)
class Subject:
    """A model as it was loaded, and its records: fresh for each run, so that nothing is left of the one before."""

    source: Checkpoint
    vlm: VLM
    request: ForgetRequest

    @classmethod
    def load(cls, folder: Path, device: str) -> Subject:
        """From `ckpt` and `records.jsonl` in the folder."""
        hierarchy = Hierarchy(read_records(folder / "records.jsonl"))
        request = ForgetRequest.of(hierarchy, [TARGET])
        return cls(Checkpoint.open(folder / "ckpt"), load_vlm(folder / "ckpt", device), request)


@dataclass(frozen=True)
class KeptActivations:
    """What the hooks kept of one pass."""

    activations: dict[TargetModule, list[Tensor]]
    """A tensor for each batch: (B, T, d); in the connector, (image tokens of the batch, d)."""
    batches: list[tuple[Sequence[int], list[list[int]]]]
    """Records of each batch, and how many tokens each one's `PARTS` have."""

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.activations.values() for tensor in tensors)

    def parts(self, module: TargetModule) -> dict[int, dict[str, Tensor]]:
        """Record -> the tokens (n, d) of each part that the module sees: in the connector, of the image."""
        parts: dict[int, dict[str, Tensor]] = {}
        for tensor, (records, lengths) in zip(self.activations[module], self.batches, strict=True):
            if module.layer is None:
                images = torch.split(tensor, [of_parts[PARTS.index("image")] for of_parts in lengths])
                parts |= {i: {"image": image} for i, image in zip(records, images, strict=True)}
            else:
                for i, row, of_parts in zip(records, tensor, lengths, strict=True):
                    tokens = torch.split(row[: sum(of_parts)], of_parts)
                    parts[i] = dict(zip(PARTS, tokens, strict=True))
        return parts


def compared_nodes(request: ForgetRequest, method: Method) -> dict[str, list[int]]:
    """The nodes that a method compares, as indices of records; of those in bars it wants the mean of magnitudes."""
    partition, (target,) = request.partition, request.partition.targets
    if isinstance(method, Shielded):
        matched = _matched(request)
        others = [i for i in partition.retain_other if i not in matched]
        return {
            "forget": list(partition.forget),
            "siblings": list(partition.siblings),
            "matched": matched,
            "other": others,
        }
    nodes = {"|forget|": list(partition.forget), "|retained|": sorted(partition.retained)}
    for number, child in enumerate(request.hierarchy.children(target)):
        nodes[f"child {number}"] = request.hierarchy.records_of(child)
        nodes[f"around {number}"] = list(partition.siblings)  # studies of the other patients
    return nodes


def _matched(request: ForgetRequest) -> list[int]:
    """Of the others, the records with a question or an answer of the target's; all spell these alike here."""
    records, partition = request.hierarchy.records, request.partition
    questions, answers = {records[i].question for i in partition.forget}, {records[i].answer for i in partition.forget}
    return [i for i in partition.retain_other if records[i].question in questions or records[i].answer in answers]


def plain_moments(subject: Subject, method: Method, each_once: bool = False) -> Moments:
    """The moments of every node; `each_once`: all records are passed once, and the nodes taken from that."""
    nodes, target_modules = compared_nodes(subject.request, method), default_modules(subject.vlm, method)
    if each_once:
        passes = [keep_activations(subject, sorted(set().union(*nodes.values())), method)] * len(nodes)
    else:
        passes = [keep_activations(subject, indices, method) for indices in nodes.values()]
    moments: Moments = {}
    for (node, indices), activations in zip(nodes.items(), passes, strict=True):
        for module in target_modules:
            parts = activations.parts(module)
            moments[module.name, node] = _moment(subject.request, method, node, {i: parts[i] for i in indices})
    if isinstance(method, Shielded):
        for module in target_modules:
            moments[module.name, "shield"] = _shield(method, nodes, moments, module)
    return moments


def _moment(request: ForgetRequest, method: Method, node: str, parts: Mapping[int, Mapping[str, Tensor]]) -> Tensor:
    """Of one node at one module, from its records' parts."""
    if isinstance(method, Chip):
        pooled = torch.stack([_pooled(of_record, method.alpha) for of_record in parts.values()])
        return (pooled.abs() if node.startswith("|") else pooled).mean(0)
    counted = [
        part
        for i, of_record in parts.items()
        for name, part in of_record.items()
        if name not in _left_out(request, node, i)
    ]
    x = torch.cat([part / len(part) ** 0.5 for part in counted])
    return x.T @ x / len(counted)


def _shield(method: Shielded, nodes: Mapping[str, list[int]], moments: Moments, module: TargetModule) -> Tensor:
    """C_r of `Shielded`: both neighbors with a share of their own beside that of all retained."""
    own = {"siblings": method.neighbor_weight, "matched": method.neighbor_weight, "other": 0.0}
    retained, of_all = sum(len(nodes[node]) for node in own), 1 - sum(own.values())
    shares = {node: share + of_all * len(nodes[node]) / retained for node, share in own.items()}
    return torch.stack([share * moments.pop((module.name, node)) for node, share in shares.items()]).sum(0)


def _pooled(parts: Mapping[str, Tensor], alpha: float) -> Tensor:
    image, others = parts["image"], [part for name, part in parts.items() if name != "image"]
    return alpha * image.mean(0) + (1 - alpha) * torch.cat(others).mean(0) if others else image.mean(0)


def _left_out(request: ForgetRequest, node: str, index: int) -> set[str]:
    """What of a record is not its node's alone: of the target the prefix, and an image that others show too."""
    if node != "forget":
        return set()
    records = request.hierarchy.records
    shown = any(records[i].image == records[index].image for i in request.partition.retained)
    return {"prefix", "image"} if shown else {"prefix"}


def keep_activations(subject: Subject, indices: Sequence[int], method: Method) -> KeptActivations:
    """Pass the records, and keep the modules' outputs (chip) or inputs (shielded)."""
    result = KeptActivations({module: [] for module in default_modules(subject.vlm, method)}, [])

    def hook(module: TargetModule, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        result.activations[module].append((output if isinstance(method, Chip) else args[0]).detach().cpu())

    def observe(indices: Sequence[int], ids: Tensor) -> None:
        images = (ids == subject.vlm.model.config.image_token_id).sum(1).tolist()
        records = [subject.request.hierarchy.records[i] for i in indices]
        result.batches.append(
            (indices, [part_lengths(subject.vlm, *pair) for pair in zip(records, images, strict=True)])
        )

    with ExitStack() as hooks:
        for module in result.activations:
            handle = subject.vlm.model.get_submodule(module.name).register_forward_hook(partial(hook, module))
            hooks.callback(handle.remove)
        plain_pass(subject, indices, observe)
    return result


def part_lengths(vlm: VLM, record: Record, image: int) -> list[int]:
    """How many tokens each of `PARTS` has, where the image has so many."""
    text, tokenizer = conversation(vlm.processor, record), vlm.processor.tokenizer
    tokens, prompt = tokenizer([text, text[: text.rindex(record.answer)]])["input_ids"]
    prefix, before = tokens.index(vlm.model.config.image_token_id), len(prompt) - 1  # one token is the image here
    return [prefix, image, before - prefix - 1, len(tokens) - before]


@torch.no_grad()
def plain_pass(
    subject: Subject, indices: Sequence[int], observe: Callable[[Sequence[int], Tensor], None] = lambda *_: None
) -> None:
    """Records through the whole model with labels, in the order of the file.

    Args:
        observe: gets each batch's records and their tokens (B, T), padded on the right.
    """
    processor, model = subject.vlm.processor, subject.vlm.model
    for start in range(0, len(indices), BATCH):
        batch = indices[start : start + BATCH]
        records = [subject.request.hierarchy.records[i] for i in batch]
        texts = [conversation(processor, record) for record in records]
        images = [[Image.open(cast(Path, record.image)).convert("RGB")] for record in records]
        inputs = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
        inputs = inputs.to(model.device)
        real = inputs["attention_mask"].bool()
        model(**inputs, labels=inputs["input_ids"].where(real, -100))
        observe(batch, inputs["input_ids"])
