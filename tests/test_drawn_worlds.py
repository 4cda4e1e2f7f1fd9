"""Drawn worlds are the same for the same seed, each record is whose it should be, and what is trained is what runs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.drawn.__main__ import seeds_of
from benchmarks.drawn.draws import FAMILIES, TOKENS_PER_COLUMN, draw_model
from benchmarks.drawn.edits import EditArguments
from benchmarks.drawn.families import family_of
from benchmarks.drawn.table import lines
from benchmarks.drawn.training import Muon, orthogonalized
from benchmarks.drawn.world import GROUPS, NAME_OF_WORLD, OF_TARGET, TEXT_PATIENT, groups_of, plan
from benchmarks.forgetting import models
from benchmarks.forgetting.worlds import World
from benchmarks.forgetting.worlds.files import write
from benchmarks.reporting import read_rows
from benchmarks.schedule import Pool, Task
from chip.data.record import LEVELS, TASKS
from chip.demo.corpus import Corpus
from chip.demo.training import adamw, loss_of, take_step
from chip.errors import InputError
from chip.methods import Chip, Shielded
from tests.families import lacking
from tests.test_worlds import contents

SEEDS = range(12)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, World]:
    """Tiny ones, with text-only patients, shared pictures, neither and both."""
    return {seed: write(NAME_OF_WORLD, seed, plan(seed, True)[0], tmp_path_factory.mktemp("drawn")) for seed in SEEDS}


def test_a_seed_gives_the_same_bytes(worlds: dict[int, World], tmp_path: Path) -> None:
    again = write(NAME_OF_WORLD, 4, plan(4, True)[0], tmp_path / "again")
    assert contents(again.folder) == contents(worlds[4].folder)
    assert (again.digest, again.targets) == (worlds[4].digest, worlds[4].targets)
    assert len({world.digest for world in worlds.values()}) == len(worlds)


def test_each_record_is_whose_it_should_be(worlds: dict[int, World]) -> None:
    shared = Counter[str]()
    for world in worlds.values():
        records = world.hierarchy.records
        for level, (target,) in world.targets.items():
            groups, node = groups_of(world, target), world.hierarchy.find(target)
            assert tuple(groups) == GROUPS
            assert [node.contains(records[i].path) for group in GROUPS for i in groups[group]].count(True) == len(
                groups["target"]
            )
            known = [i for indices in groups.values() for i in indices]
            assert len(known) == len(set(known))
            away = [world.hierarchy.find(name) for (name,) in world.targets.values() if name != target]
            assert not any(other.contains(records[i].path) for other in away for i in known)
            images = {records[i].image for i in groups["target"]} - {None}
            assert all(records[i].image in images for i in groups["ancestors on its pictures"])
            assert all(
                node.path[: len(records[i].path)] == records[i].path for i in groups["ancestors on its pictures"]
            )
            shared[level] += bool(groups["ancestors on its pictures"])
            assert (level == TEXT_PATIENT) == (not images)
    assert min(shared["patient"], shared["study"], shared["section"]) > 2
    assert shared["institution"] == 0


def test_every_target_is_asked_enough_and_leaves_siblings(worlds: dict[int, World]) -> None:
    levels = Counter(level for world in worlds.values() for level in world.targets)
    assert set(levels) == {*LEVELS, TEXT_PATIENT}
    assert all(levels[level] == len(worlds) for level in ("institution", "patient"))
    for world in worlds.values():
        for (target,) in world.targets.values():
            groups = groups_of(world, target)
            for group in ("target", "siblings"):
                records = [world.hierarchy.records[i] for i in groups[group]]
                counts = Counter(record.task for record in records if record.split == "rephrased")
                assert min(counts[task] for task in TASKS) >= OF_TARGET


def test_what_is_trained_on_is_asked_in_other_words(worlds: dict[int, World]) -> None:
    for world in worlds.values():
        asked = {
            split: {r.question for r in world.hierarchy.records if r.split == split} for split in ("train", "rephrased")
        }
        assert not asked["train"] & asked["rephrased"]
        keys = Counter((r.image, r.question) for r in world.hierarchy.records)
        assert max(keys.values()) == 1  # no question has two answers


def test_half_of_the_seeds_have_each_family_and_the_shapes_are_wide_apart() -> None:
    drawn = [draw_model(seed, images=40) for seed in range(40)]
    for half in (drawn[::2], drawn[1::2]):
        assert Counter(model.family for model in half) == dict.fromkeys(FAMILIES, 5)
    columns = [40 * model.image_tokens / model.connector_width for model in drawn]
    assert min(columns) < 0.5
    assert max(columns) > 8
    assert TOKENS_PER_COLUMN[0] / 2 < min(columns) <= max(columns) < TOKENS_PER_COLUMN[1] * 2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_loss_is_the_models_own(worlds: dict[int, World], family: str, attention: str) -> None:
    if package := lacking(family):
        pytest.skip(f"its processor needs {package}")
    world = worlds[4]
    shape = family_of(draw_model(2 * FAMILIES.index(family), 20, tiny=True))
    vlm = models.untrained(models.texts_of(world.hierarchy.records), shape, 0, "cpu")
    vlm.model.eval().set_attn_implementation(attention)
    trained = [record for record in world.hierarchy.records if not record.held_out][::29]
    with_image, without = ([r for r in trained if (r.image is None) == text] for text in (False, True))
    assert with_image
    assert without
    batch = Corpus(vlm, trained).batch(torch.arange(len(trained)))
    wanted = batch.answer[:, 1:]
    total = loss_of(vlm, batch) * wanted.sum()
    expected = 0.0
    for some in (with_image, without):
        one = Corpus(vlm, [*some, with_image[0]]).batch(torch.arange(len(some)))  # a corpus has some picture
        logits = vlm.model(**vlm.prompts.inputs(some)).logits[:, :-1]
        own = one.answer[:, 1:][:, : logits.shape[1]]
        expected += torch.nn.functional.cross_entropy(
            logits[own], one.ids[:, 1:][:, : logits.shape[1]][own], reduction="sum"
        ).item()
    assert total.item() == pytest.approx(expected, rel=1e-4)


def test_muon_takes_the_singular_values_away() -> None:
    torch.manual_seed(0)
    for shape in ((2, 24, 40), (2, 40, 24)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_muon_steps_as_adamw_would_where_it_takes_no_part() -> None:
    def embedding() -> torch.Tensor:
        torch.manual_seed(0)
        return torch.randn(5, 4, requires_grad=True)

    ours, theirs, matrix = embedding(), embedding(), torch.eye(4, requires_grad=True)
    for optimizer, weight in (
        (Muon([("embed_tokens", ours), ("layer", matrix)], 0.1), ours),
        (adamw([theirs], 0.1), theirs),
    ):
        for _ in range(3):
            take_step(optimizer, [weight], weight.square().sum() + matrix.square().sum(), rate=0.01)
    assert torch.equal(ours, theirs)
    assert not torch.equal(matrix, torch.eye(4))


def test_an_edit_is_read_from_text() -> None:
    assert EditArguments.read("") == EditArguments("", None)
    assert EditArguments.read("ridge=0.5").method == Shielded(ridge=0.5)
    assert EditArguments.read("rank=8") == EditArguments("rank=8", None, {"rank": 8})
    given = EditArguments.read("method=chip top_k=0.3 layers=0-1 target-modules=down,o")
    assert (given.method, given.others) == (Chip(top_k=0.3), {"layers": "0-1", "target_modules": ["down", "o"]})
    for wrong in ("ridge", "no-such-setting=1"):
        with pytest.raises(InputError):
            EditArguments.read(wrong)


def test_seeds_are_named_by_halves_or_one_by_one() -> None:
    assert (seeds_of("even"), seeds_of("odd"), seeds_of("3,4")) == ([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11], [3, 4])


def test_nothing_is_begun_after_the_deadline() -> None:
    def never(_: object) -> list[Task]:
        raise AssertionError

    with Pool(1) as pool:
        assert pool.run([Task(0, int, never, lambda _: None)] * 2, deadline=-1) == 2


def test_the_table_leaves_out_what_failed() -> None:
    row = {
        "edit": "",
        "level": "study",
        "exact_match": {"target": [1.0, 0.25, 0.125], "siblings": [0.5, 0.25, 0.5], "other": [1.0, 1.0, 1.0]},
        "tasks": {task: [24, 1.0, 0.5, 0.25] for task in TASKS},
        "from_retrained": 0.125,
        "recovered_gap": 0.75,
        "largest_change": 2.0,
        "strength": 8.0,
        "seconds": 3.0,
    }
    (line,) = lines([row, {"edit": "", "level": "study", "error": "refused"}])
    assert line[:10] == [
        *("defaults", "study", "1", "1", "1.00 (1.00)", "0.25 (0.25)", "0.12 (0.12)", "0.12 (0.12)", "0.75 (0.75)"),
        "0.50 (0.50)",
    ]
    assert line[10:12] == ["–", "1.00 (1.00)"]


@pytest.mark.slow
def test_what_still_runs_at_the_deadline_can_be_ended() -> None:
    start, work = time.monotonic(), Task(0, partial(time.sleep, 600), lambda _: [], lambda _: None)
    with Pool(1) as pool:
        assert pool.run([work] * 2, deadline=1, cut_off=True) == 2
    assert time.monotonic() - start < 300


@pytest.mark.slow
def test_a_tiny_run_goes_on_where_it_was(tmp_path: Path) -> None:
    options = ("--seeds", "0", "--tiny", "--level", "patient", "--device", "cpu", "--steps", "180")
    command = [sys.executable, "-m", "benchmarks.drawn", *options, "--cache", str(tmp_path / "cache")]
    runs = []
    for _ in range(2):
        out = tmp_path / "rows.json"
        done = subprocess.run(
            [*command, "--out", str(out)], cwd=Path(__file__).parents[1], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        header, rows = read_rows(out)
        assert not header["worlds"]["0"]["faults"]
        assert rows[0]["exact_match"]["target"][0] > 0.9
        runs.append((header, rows))
    assert len(runs[1][0]["runs"]) == 2
    assert runs[0][1][0]["exact_match"] == runs[1][1][0]["exact_match"]
