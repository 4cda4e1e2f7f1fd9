"""The benchmark's worlds are the same for the same seed and hold what they say; training goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.forgetting import models
from benchmarks.forgetting.families import FAMILIES
from benchmarks.forgetting.gates import Gate
from benchmarks.forgetting.models import WORLD_SEED, trained
from benchmarks.forgetting.worlds import WORLDS, World, build, clinic
from benchmarks.forgetting.worlds.files import write
from chip.data.chance import chance_accuracy
from chip.data.record import LEVELS, TASKS, Record
from chip.data.request import Partition
from chip.demo import training
from chip.demo.corpus import Batch, Corpus, Recipe
from chip.demo.training import Trainer, loss_of
from chip.demo.world import hospital_tree, places
from chip.evaluation.groups import GROUPS
from chip.model.loading import VLM, load_vlm

SHORT = Recipe(steps=4, batch=16)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    return {name: build(name, 3, tmp_path_factory.mktemp(name)) for name in WORLDS}


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Four cases of the clinic: a world that is learned in a moment, and badly."""
    plan = clinic.plan(3)
    facts = tuple(fact for fact in plan.facts if fact.path[1:2] in {("case_1",), ("case_2",), ("case_3",), ("case_4",)})
    targets = {"privacy": (("department_1", "case_2", "private"),)}
    return write("ward", 3, replace(plan, facts=facts, targets=targets), tmp_path_factory.mktemp("ward"))


@pytest.fixture
def fresh(ward: World) -> Callable[[str], VLM]:
    """Family -> its untrained model for the ward."""

    def make(family: str) -> VLM:
        texts = [record.question for record in ward.hierarchy.records]
        processor = models._processor(FAMILIES[family], texts)
        model = FAMILIES[family].model(processor, 0)
        model.set_attn_implementation("eager")
        return VLM(model, processor)

    return make


def contents(folder: Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def trained_on(world: World) -> list[Record]:
    return [record for record in world.hierarchy.records if not record.held_out]


# --- the worlds ---


@pytest.mark.parametrize("name", WORLDS)
def test_a_seed_gives_the_same_bytes(worlds: dict[str, World], tmp_path: Path, name: str) -> None:
    again = build(name, 3, tmp_path / "again")
    assert contents(again.folder) == contents(worlds[name].folder)
    assert again.digest == worlds[name].digest
    assert build(name, 4, tmp_path / "other").digest != again.digest


@pytest.mark.parametrize(("name", "start"), [("hospital", "912c45f6ccc9"), ("clinic", "f91b0bce91cc")])
def test_the_worlds_are_those_that_committed_results_are_of(name: str, start: str, tmp_path: Path) -> None:
    """A changed word, a renamed split among them, would orphan every trained model and every result."""
    records = build(name, WORLD_SEED, tmp_path).records_file.read_bytes()
    assert hashlib.sha256(records).hexdigest().startswith(start)


@pytest.mark.parametrize("name", WORLDS)
def test_every_fact_is_asked_in_every_task_of_every_split(worlds: dict[str, World], name: str) -> None:
    world = worlds[name]
    counts = Counter((record.split, record.task) for record in world.hierarchy.records)
    facts = len(world.facts)
    assert counts == {
        (split, task): facts * (2 if split == "train" else 1)
        for split in ("train", "validation", "rephrased")
        for task in TASKS
    }
    # No wording that is held out has been trained on, about any picture.
    questions = {record.question for record in trained_on(world)}
    assert not any(record.question in questions for record in world.hierarchy.records if record.held_out)
    asked_once = {(record.image, record.question) for record in world.hierarchy.records}
    assert len(asked_once) == len(world.hierarchy.records)


def test_a_ward_is_a_small_hospital(worlds: dict[str, World]) -> None:
    counts = {
        name: Counter(node.level for node in worlds[name].hierarchy.nodes if node.path[0] != "general")
        for name in ("ward", "hospital")
    }
    assert counts["ward"] == {"institution": 3, "patient": 6, "study": 12, "section": 48}
    assert counts["hospital"] == {"institution": 8, "patient": 24, "study": 48, "section": 192}


def test_the_hospital_is_as_large_as_medforget(worlds: dict[str, World]) -> None:
    hierarchy = worlds["hospital"].hierarchy
    levels = Counter(node.level for node in hierarchy.nodes if node.path[0] != "general")
    assert levels["institution"] == 8
    assert len(hierarchy.records) >= 3840
    assert set(worlds["hospital"].targets) == set(LEVELS)


@pytest.mark.parametrize("name", WORLDS)
def test_targets_leave_each_other_siblings(worlds: dict[str, World], name: str) -> None:
    for level, targets in worlds[name].targets.items():
        nodes = [worlds[name].hierarchy.find(target) for target in targets]
        assert len(nodes) == (1 if name == "ward" else 5)
        if level != "institution":  # they have but one parent
            assert len({node.parent for node in nodes}) == len(nodes)


@pytest.mark.parametrize("name", WORLDS)
def test_guessing_does_not_pay(worlds: dict[str, World], name: str) -> None:
    hierarchy = worlds[name].hierarchy
    letters = Counter(record.answer for record in hierarchy.records if record.task == "classification")
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 0.3 * sum(letters.values())
    assert not any(len(fact.kind.values) % 4 for fact in worlds[name].facts)
    for targets in worlds[name].targets.values():
        nodes = [hierarchy.find(target) for target in targets]
        partition = Partition.of(hierarchy, nodes)
        free = [index for index in partition.forget if hierarchy.records[index].task != "classification"]
        assert chance_accuracy(hierarchy, partition)[free].mean() < 0.3


@pytest.mark.parametrize("name", WORLDS)
def test_every_record_is_in_one_group(worlds: dict[str, World], name: str) -> None:
    hierarchy = worlds[name].hierarchy
    for targets in worlds[name].targets.values():
        groups = worlds[name].groups(hierarchy.find(targets[0]))
        assert set(groups) == set(GROUPS)
        assert sorted(i for group in groups.values() for i in group) == list(range(len(hierarchy.records)))
        assert groups["target"]
        assert groups["siblings"]
        assert groups["general"]


@pytest.mark.parametrize(("level", "shared"), [("patient", {"city"}), ("study", {"city", "name"}), ("section", set())])
def test_what_the_nodes_above_know_is_shared(worlds: dict[str, World], level: str, shared: set[str]) -> None:
    hierarchy = worlds["hospital"].hierarchy
    groups = worlds["hospital"].groups(hierarchy.find(worlds["hospital"].targets[level][0]))
    about = {"city": ("city", "town"), "name": ("patient's name", "person")}
    topics = {
        what
        for index in groups["shared"]
        for what, terms in about.items()
        if any(term in hierarchy.records[index].question for term in terms)
    }
    assert topics == shared
    assert bool(groups["shared"]) == bool(shared)


def test_planted_answers_are_wrong_and_among_the_options(worlds: dict[str, World]) -> None:
    planted = [fact for fact in worlds["clinic"].facts if fact.truth is not None]
    assert {fact.path[-1] for fact in planted} == {"planted"}
    assert all(fact.truth != fact.value for fact in planted)
    assert all(fact.truth in fact.kind.options(fact.value) for fact in planted)
    answers = {(record.path, record.answer) for record in worlds["clinic"].hierarchy.records}
    assert all((fact.path, fact.value) in answers for fact in planted)


# --- the hospitals ---


def test_the_demo_and_the_benchmark_share_their_hospital(worlds: dict[str, World]) -> None:
    demo = {place.path for place in places()}
    assert demo.issuperset(path for tree in hospital_tree(8, 4, 2) for path in tree)
    nodes = {node.path for node in worlds["hospital"].hierarchy.nodes if node.path[0] != "general"}
    assert nodes.issuperset(path for tree in hospital_tree(8, 3, 2) for path in tree)


# --- the models ---


def test_an_epoch_holds_every_record_once(ward: World, fresh: Callable[[str], VLM]) -> None:
    corpus = Corpus(fresh("llava"), trained_on(ward))
    first, second = (corpus.order(SHORT, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    for order in (first, second):
        assert sorted(torch.cat(order).tolist()) == list(range(len(trained_on(ward))))
        assert max(map(len, order)) <= SHORT.batch
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_loss_is_the_models_own(ward: World, fresh: Callable[[str], VLM], family: str) -> None:
    vlm, records = fresh(family), trained_on(ward)[:40:3]
    vlm.model.eval()
    batch: Batch = Corpus(vlm, records).batch(torch.arange(len(records)))
    logits = vlm.model(**vlm.prompts.inputs(records)).logits[:, :-1]
    wanted = batch.answer[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[wanted], batch.ids[:, 1:][wanted])
    assert loss_of(vlm, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    spoken = [vlm.processor.tokenizer.decode(ids[answer]) for ids, answer in zip(batch.ids, batch.answer, strict=True)]
    assert all(text.strip().startswith(record.answer) for text, record in zip(spoken, records, strict=True))


def test_a_training_goes_on_as_if_it_had_not_stopped(ward: World, fresh: Callable[[str], VLM], tmp_path: Path) -> None:
    def trainer() -> Trainer:
        vlm = fresh("llava")
        return Trainer(vlm, Corpus(vlm, trained_on(ward)), SHORT, seed=1)

    whole, stopped, resumed = trainer(), trainer(), trainer()
    losses = [whole.advance().item() for _ in range(4)]
    assert [stopped.advance().item() for _ in range(2)] == losses[:2]
    stopped.save(tmp_path / "state.safetensors")
    resumed.resume(tmp_path / "state.safetensors")
    assert [resumed.advance().item() for _ in range(2)] == losses[2:]
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_models_are_trained_once_and_go_on_after_a_stop(
    ward: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHIP_CACHE", str(tmp_path / "whole"))
    whole = trained(ward, "llava", 0, device="cpu", recipe=SHORT)
    assert not list(whole.parent.glob("*.state.*"))
    written = contents(whole)

    monkeypatch.setenv("CHIP_CACHE", str(tmp_path / "stopped"))
    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    steps: list[int] = []
    advance = Trainer.advance

    def stopping(self: Trainer) -> torch.Tensor:
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(self.step)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        trained(ward, "llava", 0, device="cpu", recipe=SHORT)
    monkeypatch.setattr(Trainer, "advance", advance)
    assert contents(trained(ward, "llava", 0, device="cpu", recipe=SHORT)) == written

    monkeypatch.setattr(Trainer, "advance", stopping)  # nothing is trained again, or this would raise
    assert contents(trained(ward, "llava", 0, device="cpu", recipe=SHORT)) == written


def test_what_makes_a_model_names_its_folder(ward: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIP_CACHE", str(tmp_path))
    trained_records: list[int] = []
    monkeypatch.setattr(models, "train", lambda vlm, records, *_: trained_records.append(len(records)))
    target = ward.targets["privacy"]
    folders = {
        trained(ward, "llava", seed, without, "cpu", recipe)
        for seed, without, recipe in (
            (0, (), SHORT),
            (1, (), SHORT),
            (0, target, SHORT),
            (0, (), replace(SHORT, steps=5)),
        )
    }
    assert len(folders) == 4
    assert trained_records == [216, 216, 192, 216]  # the private part of a case: 4 facts in 6 wordings
    for folder in folders:
        assert json.loads((folder / "config.json").read_text())["model_type"] == "llava"
        assert len(list(folder.glob("model-*.safetensors"))) > 1


def test_a_model_that_knows_too_little_does_not_pass() -> None:
    assert not Gate({"train": 0.96, "rephrased": 0.9}, {"a": 0.5}).faults
    faults = Gate({"train": 0.94, "rephrased": 0.9}, {"a": 0.5, "b": 0.49}).faults
    assert faults == (
        "train questions: 0.940 are answered, 0.95 must be",
        "b: answered by 0.490 more than without it, 0.5 is the least",
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoint_loads(ward: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setenv("CHIP_CACHE", str(tmp_path))
    vlm = load_vlm(trained(ward, family, 0, device="cpu", recipe=replace(SHORT, steps=1)), "cpu")
    inputs = vlm.prompts.inputs(trained_on(ward)[:1])
    assert (inputs["input_ids"] == vlm.image_token_id).sum() == 4
    assert 2e6 < sum(parameter.numel() for parameter in vlm.model.parameters()) < 4e6
