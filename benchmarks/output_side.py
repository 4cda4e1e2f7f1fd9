"""The output side of an MLP against its input side, on dense layers: `python -m benchmarks.output_side [NODE ...]`.

A block of experts is edited on its output, whatever its routing. Here the demo's dense layers are taken for such
blocks, so that both edits can be made of one model, each with the retain weight that the search finds for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.request import ForgetRequest, Partition
from chip.demo import write_demo
from chip.methods import Shielded
from chip.methods.apply import default_modules, edit_model
from chip.model.experts import OutputMap
from chip.model.loading import load_vlm
from chip.model.scoring import score_records
from chip.model.target_modules import TargetModule

NODES = ("patient_17", "patient_3", "institution_2")
WAYS = {
    "input, connector too": (True, False),
    "output, connector too": (True, True),
    "input": (False, False),
    "output": (False, True),
}
"""Way -> whether the connector is edited too, and whether the layers are on their output."""


def on_output(module: TargetModule) -> TargetModule:
    """A layer's `mlp.down_proj` as the block that it ends."""
    block = module.name.rpartition(".")[0]
    return TargetModule(
        block, module.kind, module.component, module.layer, False, output_maps=(OutputMap(module.weight_name, 0),)
    )


def main(nodes: Sequence[str]) -> None:
    with TemporaryDirectory() as folder:
        hospital = Path(folder) / "hospital"
        write_demo(hospital)
        source = Checkpoint.open(hospital / "ckpt")
        records = read_records(hospital / "records.jsonl")
        print("| node | side | β | target | siblings | others | ‖ΔW‖/‖W‖ |\n|---|---|---|---|---|---|---|")
        for node in nodes:
            hierarchy = Hierarchy(records)
            request = ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find(node)]))
            for way, (connector, output) in WAYS.items():
                vlm = load_vlm(source.folder, "cpu")
                modules = default_modules(vlm, Shielded(), None if connector else ["down"])
                if output:
                    modules = [on_output(module) if module.kind == "down" else module for module in modules]
                patch = edit_model(vlm, source, Shielded(), request, modules)
                exact = score_records(vlm, records).exact_match
                groups = ("target", "siblings", "retain_other")
                held = {
                    group: [i for i in getattr(request.partition, _FIELDS[group]) if records[i].held_out]
                    for group in groups
                }
                figures = [f"{float(exact[held[group]].mean()):.3f}" if held[group] else "–" for group in groups]
                change = max(patch.relative_change.values())
                beta = patch.settings["retain_weight"]
                print(f"| {node} | {way} | {beta:g} | {' | '.join(figures)} | {change:.2f} |", flush=True)


_FIELDS = {"target": "forget", "siblings": "siblings", "retain_other": "retain_other"}

if __name__ == "__main__":
    main(sys.argv[1:] or NODES)
