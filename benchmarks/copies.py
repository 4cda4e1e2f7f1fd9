"""An edit by statistics of a quantized copy against that by the model's own: `python -m benchmarks.copies [NODE ...]`.

The demo's model is edited with the retain weight that the search finds on what it measures on: the model itself, or a
copy whose linear layers but the head are rounded as they would be deployed. Minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.record import Record
from chip.data.request import ForgetRequest, Partition
from chip.demo import write_demo
from chip.evaluation.attacks.quantization import SCHEMES, quantized
from chip.methods import Shielded
from chip.methods.apply import default_modules, edit_model
from chip.model.loading import load_vlm
from chip.model.scoring import score_records

NODES = ("patient_17", "patient_3")
ITSELF = "the model itself"
COPIES = (ITSELF, "8 bits", "NF4", "4 bits")


def edited(source: Path, records: Sequence[Record], node: str, copy: str) -> str:
    """One row of the table: exact match of the edited model on the wordings that were not trained on."""
    hierarchy, vlm = Hierarchy(records), load_vlm(source, "cpu")
    request = ForgetRequest(hierarchy, Partition.of(hierarchy, [hierarchy.find(node)]))
    before, modules = score_records(vlm, records).exact_match, default_modules(vlm, Shielded())
    arguments = (Checkpoint.open(source), Shielded(), request, modules)
    if copy == ITSELF:
        patch = edit_model(vlm, *arguments)
    else:
        seen = load_vlm(source, "cpu")
        with quantized(seen, SCHEMES[copy]):
            patch = edit_model(seen, *arguments, weights=vlm.weights)
    after = score_records(vlm, records).exact_match
    partition = request.partition
    groups = (partition.forget, partition.siblings, partition.retain_other)
    held = [[i for i in group if records[i].held_out] for group in groups]
    figures = [f"{float(before[i].mean()):.3f} → {float(after[i].mean()):.3f}" if i else "–" for i in held]
    change, beta = max(patch.relative_change.values()), patch.settings["retain_weight"]
    return f"| {node} | {copy} | {beta:g} | {' | '.join(figures)} | {change:.3f} |"


def main(nodes: Sequence[str]) -> None:
    with TemporaryDirectory() as folder:
        hospital = Path(folder) / "hospital"
        write_demo(hospital)
        records = read_records(hospital / "records.jsonl")
        print("| node | measured on | β | target | siblings | others | ‖ΔW‖/‖W‖ |\n|---|---|---|---|---|---|---|")
        for node in nodes:
            for copy in COPIES:
                print(edited(hospital / "ckpt", records, node, copy), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or NODES)
