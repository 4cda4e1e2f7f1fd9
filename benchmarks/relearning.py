"""Does the part of an edit that retained inputs reach tell how much relearning brings back?

    python -m benchmarks.relearning [--json FILE] [--picture FILE] [--most N]

Relearning on retained records moves a weight within the row space of their inputs only. So of an edit ΔW the part
ΔW P_r can be undone there, and ΔW (I − P_r) cannot, which predicts that what comes back grows with

    ρ = ‖ΔW P_r x_f‖ / ‖ΔW x_f‖,   root mean squares over the target's tokens x_f.

Some targets of the demo are edited with some retain weights; ρ is computed from the statistics that the edit was solved
from; the edited model is trained on records of others; and the two are correlated over all edits. P_r projects onto the
leading eigenvectors of the retained second moment that hold a share of its trace: strictly, retained inputs span
everything. What comes back is the target's answer probability, as a share of what the edit took.

Edits that the file has already are not run again; `--most` stops after so many new ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from itertools import islice, product
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from benchmarks.editing import edited
from benchmarks.measuring import scratch_folder
from benchmarks.reporting import RESULTS, print_table, read_rows, write_rows
from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.request import ForgetRequest
from chip.demo import write_demo
from chip.evaluation.attacks.relearning import relearning
from chip.kernels.gram import symmetrize_
from chip.methods import Shielded
from chip.methods.base import WeightUpdate
from chip.methods.shielded_statistics import ShieldedStatistics
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import score_records
from chip.model.target_modules import Component

TARGETS = ("patient_17", "study_8", "institution_3", "patient_5", "study_40", "patient_29")
RETAIN_WEIGHTS = (3.0, 24.0, 192.0)
SHARES = (0.9, 0.99, 0.999)
"""Of the trace of the retained second moment that P_r holds; the middle one was chosen before anything was measured."""
MAIN_SHARE = 1
BUDGETS = (10, 30)
ASKED = 96
"""Questions about the target, at most; they are drawn by the seed."""
SEED = 0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EditRow:
    """One edit, and what training on others brought back."""

    target: str
    retain_weight: float
    ratios: tuple[float, ...]
    """ρ for each of `SHARES`, mean over the modules."""
    before: float
    edited: float
    """The target's mean answer probability, before and after the edit."""
    relearned: tuple[float, ...]
    """The same after each of `BUDGETS`."""

    def came_back(self, budget: int) -> float:
        """What relearning brought back, as a share of what the edit took."""
        return (self.relearned[budget] - self.edited) / (self.before - self.edited)


class Observed(Shielded):
    """The default method, which looks at each change it makes."""

    ratios: ClassVar[list[tuple[float, ...]]] = []
    """ρ for each of `SHARES`, of one module after the other."""

    def solve(
        self, weight: Tensor, bias: Tensor | None, statistics: ShieldedStatistics, component: Component = Component.TEXT
    ) -> WeightUpdate | None:
        update = super().solve(weight, bias, statistics, component)
        if update is not None and update.weight is not None:
            change = update.weight.double() - weight.double()
            forget, retained = (
                symmetrize_(moment.upper.clone()).double() for moment in (statistics.forget, statistics.shield)
            )
            self.ratios.append(tuple(reachable(change, forget, retained, share) for share in SHARES))
        return update


def reachable(change: Tensor, forget: Tensor, retained: Tensor, share: float) -> float:
    """ρ of one module.

    Args:
        change: ΔW (d_out, d_in).
        forget, retained: second moments of the target's and of retained inputs, (d_in, d_in), whatever their scale.
        share: of the trace of `retained` that P_r holds.
    """
    values, vectors = torch.linalg.eigh(retained)
    held = values.flip(0).cumsum(0) / values.sum()
    basis = vectors.flip(1)[:, : int((held < share).sum()) + 1]
    inside = change @ basis @ basis.T
    total = float(((change @ forget) * change).sum())
    return float(np.sqrt(max(0.0, float(((inside @ forget) * inside).sum())) / total))


def edits(folder: Path, known: set[tuple[str, float]]) -> Iterator[EditRow]:
    """Of all targets and retain weights but those that are known."""
    write_demo(folder)
    source, hierarchy = Checkpoint.open(folder / "ckpt"), Hierarchy(read_records(folder / "records.jsonl"))
    vlm = load_vlm(source.folder, "cpu")
    for target, retain_weight in product(TARGETS, RETAIN_WEIGHTS):  # so that a stopped run has all weights of some
        if (target, retain_weight) not in known:
            request = ForgetRequest.of(hierarchy, [target])
            yield measure(vlm, source, request, target, retain_weight)


def measure(vlm: VLM, source: Checkpoint, request: ForgetRequest, target: str, retain_weight: float) -> EditRow:
    """Edit, train on others, ask after each budget; the model is as before afterwards."""
    records = request.hierarchy.records
    sample = np.random.default_rng(SEED).permutation(request.partition.forget)[:ASKED].tolist()
    asked = [records[index] for index in sample]
    others = [records[index] for index in request.partition.retained if not records[index].held_out]

    def probability() -> float:
        return float(score_records(vlm, asked).answer_probability.mean())

    method = Observed(retain_weight=retain_weight)
    before = probability()
    Observed.ratios.clear()
    with edited(vlm, source, method, request):
        ratios = tuple(np.mean(Observed.ratios, axis=0).tolist())
        after = probability()
        with closing(relearning(vlm, others, SEED, BUDGETS)) as budgets:
            relearned = tuple(probability() for _ in budgets)
    return EditRow(target, retain_weight, ratios, before, after, relearned)


def correlations(rows: Sequence[EditRow]) -> Iterator[tuple[str, ...]]:
    """Of ρ with what came back, over all edits, and with each retain weight's mean taken off both."""
    weights = np.array([row.retain_weight for row in rows])
    for number, share in enumerate(SHARES):
        ratio = np.array([row.ratios[number] for row in rows])
        for budget, steps in enumerate(BUDGETS):
            back = np.array([row.came_back(budget) for row in rows])
            within = _within(ratio, weights), _within(back, weights)
            figures = (spearmanr(ratio, back)[0], pearsonr(ratio, back)[0], pearsonr(*within)[0])
            yield (f"{share:g}", f"{steps}", *(f"{figure:+.2f}" for figure in figures))


def _within(values: Array, groups: Array) -> Array:
    """Values less the mean of their group."""
    means = {group: values[groups == group].mean() for group in np.unique(groups)}
    result: Array = values - np.array([means[group] for group in groups])
    return result


def draw(rows: Sequence[EditRow], file: Path) -> None:
    """ρ against what came back, a panel for each budget."""
    figure = Figure((3 * len(BUDGETS) + 1, 3.2), layout="constrained")
    for budget, (axis, steps) in enumerate(zip(figure.subplots(1, len(BUDGETS), sharey=True), BUDGETS, strict=True)):
        for weight in RETAIN_WEIGHTS:
            some = [row for row in rows if row.retain_weight == weight]
            axis.scatter(
                [row.ratios[MAIN_SHARE] for row in some],
                [row.came_back(budget) for row in some],
                s=16,
                label=f"β {weight:g}",
            )
        axis.set_title(f"{steps} steps", fontsize=9)
        axis.set_xlabel("‖ΔW P_r x_f‖ / ‖ΔW x_f‖", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if not budget:
            axis.set_ylabel("share of what the edit took that came back", fontsize=8)
            axis.legend(fontsize=7)
    figure.savefig(file, dpi=90)


def _read(file: Path) -> list[EditRow]:
    if not file.exists():
        return []
    return [
        EditRow(**{**row, "ratios": tuple(row["ratios"]), "relearned": tuple(row["relearned"])})
        for row in read_rows(file)[1]
    ]


def main(
    json_file: Annotated[Path, typer.Option("--json", help="File for the rows.")] = RESULTS / "relearning.json",
    picture: Annotated[Path, typer.Option(help="The plot, as PNG.")] = RESULTS / "relearning.png",
    most: Annotated[int | None, typer.Option(help="New edits, at most; by default all.")] = None,
) -> None:
    """Measure what is missing, draw all, and print how the two go together."""
    rows = _read(json_file)
    with scratch_folder() as folder:
        known = {(row.target, row.retain_weight) for row in rows}
        for row in islice(edits(folder, known), most):
            rows.append(row)
            print(row, flush=True)
            names = [field.name for field in fields(EditRow)]
            write_rows(json_file, names, map(astuple, rows), budgets=BUDGETS, shares=SHARES)
    draw(rows, picture)
    if len(rows) > len(RETAIN_WEIGHTS):
        columns = ("P_r holds", "steps", "Spearman", "Pearson", "Pearson, same β")
        print_table(f"ρ against what came back, {len(rows)} edits", columns, list(correlations(rows)), set())


if __name__ == "__main__":
    typer.run(main)
