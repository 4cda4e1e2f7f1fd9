"""The output side of an MLP against its input side: `python -m benchmarks.output_side [NODE ...]`, minutes.

A block of experts is edited on its output, whatever its routing. Two models show what that costs, each edited with the
retain weight that the search finds for it: the demo's, whose dense layers are taken for such blocks; and the same model
as a mixture of experts, whose router is drawn at random and whose experts are copies of the dense layer. Weights of a
token's experts add up to one, so that it answers as the demo does, and each token goes its own way.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.record import Record
from chip.data.request import ForgetRequest, Partition
from chip.demo import write_demo
from chip.methods import Shielded
from chip.methods.apply import default_modules, edit_model
from chip.model.experts import OutputMap
from chip.model.loading import load_vlm
from chip.model.scoring import score_records
from chip.model.target_modules import TargetModule

NODES = ("patient_17", "patient_3")
EXPERTS, CHOSEN, SEED = 4, 2, 7


@dataclass(frozen=True)
class Way:
    """One way to edit."""

    name: str
    connector: bool
    """Whether it is edited too."""
    output: bool = False
    """Dense layers are taken for blocks of experts."""
    mixture: bool = False


WAYS = (
    Way("dense, input", connector=True),
    Way("dense, output", connector=True, output=True),
    Way("mixture, output", connector=True, mixture=True),
    Way("dense, input, no connector", connector=False),
    Way("dense, output, no connector", connector=False, output=True),
    Way("mixture, output, no connector", connector=False, mixture=True),
)


def on_output(module: TargetModule) -> TargetModule:
    """A layer's `mlp.down_proj` as the block that it ends."""
    block = module.name.rpartition(".")[0]
    maps = (OutputMap(module.weight_name, 0),)
    return TargetModule(block, module.kind, module.component, module.layer, bias=False, output_maps=maps)


@torch.no_grad()
def write_mixture(source: Path, folder: Path) -> None:
    """The checkpoint as a LLaVA with a Mixtral."""
    dense: Any = AutoModelForImageTextToText.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    text = dense.config.text_config.to_dict() | {
        "model_type": "mixtral",
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "sliding_window": None,
    }
    torch.manual_seed(SEED)
    mixture: Any = LlavaForConditionalGeneration(LlavaConfig(**dense.config.to_dict() | {"text_config": text}))
    mixture.load_state_dict(dense.state_dict(), strict=False)
    for old, new in zip(dense.model.language_model.layers, mixture.model.language_model.layers, strict=True):
        both = torch.cat((old.mlp.gate_proj.weight, old.mlp.up_proj.weight))
        new.mlp.experts.gate_up_proj.copy_(both.expand(EXPERTS, -1, -1))
        new.mlp.experts.down_proj.copy_(old.mlp.down_proj.weight.expand(EXPERTS, -1, -1))
        torch.nn.init.normal_(new.mlp.gate.weight)
    mixture.to(dense.dtype).save_pretrained(folder)
    for file in source.iterdir():
        if file.suffix != ".safetensors" and not (folder / file.name).exists() and "index" not in file.name:
            shutil.copy(file, folder)


def edited(source: Path, records: Sequence[Record], node: str, way: Way) -> str:
    """One row of the table: exact match on held-out wordings of the edited model."""
    hierarchy, vlm = Hierarchy(records), load_vlm(source, "cpu")
    request = ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find(node)]))
    modules = default_modules(vlm, Shielded(), None if way.connector else ["down"])
    if way.output:
        modules = [on_output(module) if module.kind == "down" else module for module in modules]
    before = score_records(vlm, records).exact_match
    patch = edit_model(vlm, Checkpoint.open(source), Shielded(), request, modules)
    after = score_records(vlm, records).exact_match
    partition = request.partition
    groups = (partition.forget, partition.siblings, partition.retain_other)
    held = [[i for i in group if records[i].held_out] for group in groups]
    figures = [f"{float(before[i].mean()):.2f} → {float(after[i].mean()):.3f}" if i else "–" for i in held]
    change, beta = max(patch.relative_change.values()), patch.settings["retain_weight"]
    return f"| {node} | {way.name} | {beta:g} | {' | '.join(figures)} | {change:.2f} |"


def main(nodes: Sequence[str]) -> None:
    with TemporaryDirectory() as folder:
        hospital, mixture = Path(folder) / "hospital", Path(folder) / "mixture"
        write_demo(hospital)
        write_mixture(hospital / "ckpt", mixture)
        records = read_records(hospital / "records.jsonl")
        print("| node | edit | β | target | siblings | others | ‖ΔW‖/‖W‖ |\n|---|---|---|---|---|---|---|")
        for node in nodes:
            for way in WAYS:
                print(edited(mixture if way.mixture else hospital / "ckpt", records, node, way), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or NODES)
