"""The main job, end to end on the demo: what is forgotten, what is kept, and what lies in the written folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import mean

import pytest
import torch
import transformers

import chip
from benchmarks.demo import random_update
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.writer import write_patched
from chip.data.hierarchy import Hierarchy
from chip.data.request import Partition
from chip.evaluation.attacks.quantization import quantize_linears
from chip.methods import Chip
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import score_records
from chip.report.edit_report import EditReport
from tests.families import UNTRAINED, build, write_records
from tests.folders import contents, write_part

PATIENTS = ("patient_17", "patient_9", "patient_30")
AMONG_FEW = "patient_17, of three institutions"
"""What quick tests look at: of all eight it takes twice as long."""
OTHERS = {"study_33": 0.85, "study_40/findings": 0.80, "institution_5": 0.90}
"""Node of another level -> how much of its siblings has to stay."""


@pytest.fixture(scope="module")
def edited(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], EditReport]:
    """`chip edit hospital/ckpt --forget NODE` with all defaults, once for each node that a test wants.

    The nodes of other levels are forgotten among half of the institutions.
    """
    folder = tmp_path_factory.mktemp("edited")
    half = write_part(hospital, range(5, 9), folder / "half")
    parts = dict.fromkeys(OTHERS, half) | {AMONG_FEW: write_part(hospital, range(5, 8), folder / "few")}

    @cache
    def edit(node: str) -> EditReport:
        records, out = parts.get(node), folder / str(len(list(folder.iterdir())))
        return chip.edit(hospital / "ckpt", [node.partition(",")[0]], records=records, out=out, device="cpu")

    return edit


@pytest.fixture(scope="module")
def report(edited: Callable[[str], EditReport]) -> EditReport:
    return edited(AMONG_FEW)


def _written(report: EditReport) -> Path:
    assert report.output is not None
    return Path(report.output)


def _after(report: EditReport, group: str, split: str) -> float:
    value = report.groups[group][split].exact_match.after
    assert value is not None
    return value


def _exact(vlm: VLM, hierarchy: Hierarchy, indices: tuple[int, ...]) -> float:
    return float(score_records(vlm, [hierarchy.records[i] for i in indices]).exact_match.mean())


def test_the_model_knows_the_hospital_and_the_edit_keeps_it_so(report: EditReport) -> None:
    for results in report.groups.values():
        assert results["trained"].exact_match.before >= 0.95
        assert results["paraphrased"].exact_match.before >= 0.90
    assert _after(report, "target", "trained") <= report.groups["target"]["trained"].chance + 0.25
    assert _after(report, "siblings", "trained") >= 0.88
    assert _after(report, "other", "trained") >= 0.95


@pytest.mark.slow
def test_patients_are_forgotten_and_the_others_are_kept(edited: Callable[[str], EditReport]) -> None:
    reports = [edited(patient) for patient in PATIENTS]
    for split, above_chance in (("trained", 0.10), ("paraphrased", 0.15)):
        assert mean(_after(r, "target", split) - r.groups["target"][split].chance for r in reports) <= above_chance
    assert mean(_after(report, "siblings", "trained") for report in reports) >= 0.95
    assert mean(_after(report, "other", "trained") for report in reports) >= 0.97
    assert min(_after(report, "siblings", split) for report in reports for split in ("trained", "paraphrased")) >= 0.88


def test_forgetting_survives_rounding_to_four_bits(report: EditReport, hierarchy: Hierarchy) -> None:
    vlm = load_vlm(_written(report), "cpu")
    quantize_linears(vlm.model)
    split = Partition.of(hierarchy, [hierarchy.find("patient_17")])
    target = report.groups["target"]["trained"]
    assert _exact(vlm, hierarchy, split.forget) <= target.chance + 0.20
    assert _exact(vlm, hierarchy, split.siblings) >= 0.85


def test_only_the_changed_tensors_differ(report: EditReport, hospital: Path) -> None:
    difference = chip.diff(hospital / "ckpt", _written(report))
    assert {each.name for each in difference.changed} == set(report.relative_change)
    for each in difference.changed:
        assert each.relative_change == pytest.approx(report.relative_change[each.name], rel=1e-4)
    kept = [file for file in (hospital / "ckpt").iterdir() if file.suffix != ".safetensors"]
    assert kept
    for file in kept:
        assert (_written(report) / file.name).read_bytes() == file.read_bytes()


def test_plain_transformers_loads_it_and_computes_the_same(
    report: EditReport, hospital: Path, hierarchy: Hierarchy
) -> None:
    written = _written(report)
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        written, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = transformers.AutoProcessor.from_pretrained(written)
    plain = VLM(model.eval(), processor)
    some = tuple(range(0, len(hierarchy.records), 50))
    ours = score_records(load_vlm(written, "cpu"), [hierarchy.records[i] for i in some])
    theirs = score_records(plain, [hierarchy.records[i] for i in some])
    torch.testing.assert_close(ours.answer_probability, theirs.answer_probability)


def test_nothing_of_the_forgotten_is_in_the_released_folder(report: EditReport, hierarchy: Hierarchy) -> None:
    split = Partition.of(hierarchy, [hierarchy.find("patient_17")])
    records = [hierarchy.records[i] for i in split.forget]
    secrets = {"patient_17"} | {record.path[-1] for record in records if len(record.path) <= 3}
    secrets |= {record.answer for record in records if record.path[-1] == "patient_17" and len(record.answer) > 4}
    files = [file for file in _written(report).rglob("*") if file.is_file()]
    assert not [file for file in files if file.suffix in {".jsonl", ".png", ".pt", ".pkl"}]
    for file in files:
        content = file.read_bytes()
        if file.name == "tokenizer.json":  # the same file as before the edit: it knows words, nobody's
            continue
        assert not [secret for secret in secrets if secret.encode() in content]


def test_a_random_change_of_the_same_size_does_not_forget(
    report: EditReport, hospital: Path, hierarchy: Hierarchy, tmp_path: Path
) -> None:
    """The control: it is the direction that matters, not the damage."""
    source = Checkpoint.open(hospital / "ckpt")
    write_patched(source, tmp_path / "random", random_update(source, report.relative_change))
    vlm, split = load_vlm(tmp_path / "random", "cpu"), Partition.of(hierarchy, [hierarchy.find("patient_17")])
    gap = _exact(vlm, hierarchy, split.siblings) - _exact(vlm, hierarchy, split.forget)
    wanted = _after(report, "siblings", "trained") - _after(report, "target", "trained")
    assert gap <= 0.2
    assert wanted >= 0.6


def test_loading_leaves_the_progress_bars_of_transformers_as_they_were(hospital: Path) -> None:
    for wanted, turn in ((False, "disable"), (True, "enable")):
        getattr(transformers.logging, f"{turn}_progress_bar")()
        load_vlm(hospital / "ckpt", "cpu")
        assert transformers.logging.is_progress_bar_enabled() == wanted


def test_exact_match_is_what_greedy_decoding_says(vlm: VLM, hierarchy: Hierarchy) -> None:
    """On records of which the model, made noisy, knows some and not others."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = vlm.layers[1].mlp.down_proj.weight
        weight += 5 * weight.std() * torch.randn(weight.shape, generator=generator)
    records = [hierarchy.records[i] for i in range(0, len(hierarchy.records), 60)]
    decoded = []
    for record in records:
        inputs = vlm.prompts.question(record)
        ids = vlm.model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answer = vlm.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        decoded.append(float(answer.strip() == record.answer))
    scored = score_records(vlm, records).exact_match.tolist()
    assert scored == decoded
    assert 0.1 < sum(decoded) / len(decoded) < 0.9


@pytest.mark.filterwarnings("ignore:few questions")
@pytest.mark.slow
@pytest.mark.parametrize(("node", "siblings"), OTHERS.items())
def test_every_level_can_be_forgotten(edited: Callable[[str], EditReport], node: str, siblings: float) -> None:
    report = edited(node)
    target = report.groups["target"]["trained"]
    assert _after(report, "target", "trained") <= target.chance + 0.25  # 0.15 holds for the mean of five
    assert _after(report, "siblings", "trained") >= siblings


@pytest.mark.slow
def test_several_targets_at_once_with_the_published_operator(hospital: Path, tmp_path: Path) -> None:
    report = chip.edit(
        hospital / "ckpt",
        ["patient_2", "study_3", "institution_4"],  # the study lies in the patient, who swallows it
        records=write_part(hospital, (1, 4, 5), tmp_path / "part"),
        out=tmp_path / "out",
        method=Chip(top_k=0.5),
        device="cpu",
    )
    assert report.method == "chip"
    assert report.groups["target"]["trained"].count == 6 * (19 + 4 * 19 + 2)
    assert all("layers.3." in name or "projector" in name for name in report.relative_change)
    difference = chip.diff(hospital / "ckpt", _written(report))
    assert all(each.rows_changed <= 0.51 for each in difference.changed)


@pytest.mark.filterwarnings("ignore:few questions")
def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    write_records(tmp_path)
    build(tmp_path / "ckpt", "llava")
    before = contents(tmp_path)
    started: list[str] = []

    @contextmanager
    def progress(what: str, _: int) -> Iterator[Callable[[int], None]]:
        started.append(what)
        yield lambda _: None

    report = chip.edit(tmp_path / "ckpt", ["patient_1"], dry_run=True, device="cpu", progress=progress, **UNTRAINED)
    assert report.output is None
    assert report.relative_change
    assert "asking after" not in started
    assert json.loads(json.dumps(report.to_json()))["groups"]["target"]["trained"]["exact_match"]["after"] is None
    assert contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt", "images", "records.jsonl"}
