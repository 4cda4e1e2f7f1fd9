"""The benchmark of a pretrained model: what it teaches, what it measures of all else, and that everything runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from benchmarks.countries import TARGETS, WORDINGS
from benchmarks.forgetting.methods.edits import ChipEdit
from benchmarks.forgetting.worlds.wording import WORDINGS as ASKED
from benchmarks.pretrained import training
from benchmarks.pretrained.__main__ import app
from benchmarks.pretrained.general import (
    GeneralAbility,
    held_out_prose,
    is_prose,
    language,
    pieces,
    real_texts,
    texts_of,
)
from benchmarks.pretrained.lora import add_lora, merge_lora
from benchmarks.pretrained.rows import PretrainedRow
from benchmarks.pretrained.running import TEXTS, TRAINING, RowTask, Setup
from benchmarks.pretrained.schedule import Run, needs, row_tasks
from benchmarks.pretrained.subjects import BEFORE, TAUGHT, Options
from benchmarks.pretrained.tables import learning_faults
from benchmarks.pretrained.training import Recipe, place, run_stages, train
from benchmarks.pretrained.tuning import spread
from benchmarks.pretrained.ways import LINEAR, WAYS
from benchmarks.pretrained.world import Size, build
from benchmarks.reporting import read_rows
from benchmarks.schedule import Task
from benchmarks.smollm2 import END_OF_TURN, START, build_around, build_processor
from chip.demo.tokenizer import train_tokenizer
from chip.model.loading import load_vlm

SMALL = Size(institutions=3, patients=2, studies=2, targets=1)
RECIPE = Recipe(steps=4, batch=64, align_steps=3, rank=2, replay=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `smollm2` writes, with a text model of two layers that knows nothing."""
    folder = tmp_path_factory.mktemp("pretrained") / "ckpt"
    world = build(SMALL, folder.with_name("world"))
    texts = [text for record in world.hierarchy.records for text in (f" {record.question}", f" {record.answer}")]
    tokens: Tokenizer = train_tokenizer(chain(texts, held_out_prose()), 1500, (START, "<|im_start|>", END_OF_TURN))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<|im_start|>", eos_token=END_OF_TURN)
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        vocab_size=len(fast),
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    processor = build_processor(fast)
    build_around(text.to_dict(), LlamaModel(text).state_dict(), processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cache(checkpoint: Path) -> Path:
    """With texts, which a model that knows nothing cannot write."""
    folder = Options(checkpoint, checkpoint.parent / "cache", "cpu", texts=4).texts_folder
    folder.mkdir(parents=True)
    lines = [{"text": text} for text in held_out_prose()[:8]]
    for name, of_file in (("sampled", lines[:4]), ("real", lines[:4]), ("held-out", lines[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in of_file))
    with (folder / "records.jsonl").open("w") as file:
        for country in (*TARGETS, "peru"):
            for wordings, answer in zip(WORDINGS, ("a", "b", "c", "d"), strict=True):
                for wording, split in zip(wordings, ("train", "paraphrased", "validation"), strict=True):
                    row = {"question": wording.format(country.title()), "answer": answer, "split": split}
                    file.write(json.dumps({"institution": "world", "patient": country, **row}) + "\n")
    return folder.parent


def test_the_world_asks_with_a_picture_or_by_name(tmp_path: Path) -> None:
    world = build(SMALL, tmp_path)
    records = world.hierarchy.records
    names = {record.answer for record in records if record.question == "What is the patient's name?"}
    assert len(names) == 6
    by_name = [record for record in records if record.image is None]
    # director and founding year of 3, birth year and insurer of 6, medication and diagnosis of 12 studies
    assert len(by_name) == len(ASKED) * (3 * 2 + 6 * 2 + 12 * 2)
    assert all(record.question.startswith(("Institution in ", "Patient ")) for record in by_name)
    patients = {record.question.split(":")[0].removeprefix("Patient ").split(",")[0] for record in by_name}
    assert names < patients
    in_both = {(record.path, record.answer) for record in by_name}
    assert in_both < {(record.path, record.answer) for record in records if record.image is not None}
    questions = [(record.question, record.image) for record in records]
    assert len(set(questions)) == len(questions)
    target = world.hierarchy.find(world.targets["study"][0])
    groups = world.groups(target)
    assert {records[i].image is None for i in groups["target"]} == {True, False}
    assert len(groups["siblings"]) == len(groups["target"])


def test_a_merged_adapter_gives_what_the_adapter_gave() -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("q_proj", nn.Linear(5, 4))
    model.add_module("other", nn.Linear(4, 3))
    x = torch.randn(7, 5)
    before = model(x)
    (adapter,) = add_lora(model, rank=2, alpha=4)
    torch.testing.assert_close(model(x), before)
    nn.init.normal_(adapter.up)
    adapted = model(x)
    weight = adapter.base.weight + 2 * adapter.up @ adapter.down
    merge_lora(model)
    torch.testing.assert_close(model(x), adapted)
    assert not torch.allclose(adapted, before)
    assert isinstance(model.q_proj, nn.Linear)
    torch.testing.assert_close(model.q_proj.weight, weight)


def test_prose_is_english_and_that_which_is_measured_is_not_kept() -> None:
    kept, measured = list(real_texts()), held_out_prose()
    assert len(kept) > 150
    assert len(measured) == 48
    assert not set(kept).intersection(measured)
    assert all(map(is_prose, (*kept, *measured)))
    assert not is_prose("x = {1: [2, 3]}")
    assert list(pieces(["ab", "cd", "efgh", "ij"], 4)) == ["ab c", "efgh"]


def test_general_ability_of_the_unedited_and_of_a_changed_model(checkpoint: Path) -> None:
    vlm, other = load_vlm(checkpoint, "cpu"), load_vlm(checkpoint, "cpu")
    ability = GeneralAbility(vlm, held_out_prose()[8:10], most=2, plain=3)
    same = ability.measure(other)
    assert same["same"] == 1
    assert (same["right"], same["ends"]) == (same["right_before"], same["ends_before"])
    assert all(same[name] == pytest.approx(0, abs=1e-6) for name in ("prose", "prose_kl", "sampled", "sampled_kl"))
    parameter = other.model.get_parameter("model.language_model.layers.0.mlp.down_proj.weight")
    parameter.add_(torch.randn_like(parameter), alpha=0.5)
    assert ability.measure(other)["prose_kl"] > 0.01

    (text,) = texts_of(vlm, held_out_prose()[:1])
    before, nats, divergence = language(vlm, other, [text])
    logs = [each.model(input_ids=text[None]).logits[0, :-1].log_softmax(-1) for each in (vlm, other)]
    chosen = [log[torch.arange(len(log)), text[1:]] for log in logs]
    assert before == pytest.approx(-float(chosen[0].mean()), rel=1e-4)
    assert nats == pytest.approx(float((chosen[0] - chosen[1]).mean()), rel=1e-4)
    assert divergence == pytest.approx(
        float(nn.functional.kl_div(logs[1], logs[0], reduction="batchmean", log_target=True)), rel=1e-4
    )


class _Counting:
    """Two steps, of which the last may break."""

    def __init__(self, breaks: bool = False) -> None:
        self.steps, self.taken, self.breaks = 50, list[int](), breaks
        self.parameters = [nn.Parameter(torch.zeros(1))]
        self.optimizer = torch.optim.AdamW(self.parameters)

    def take(self, step: int) -> float:
        if self.breaks and step == 30:
            raise KeyboardInterrupt
        self.taken.append(step)
        with torch.no_grad():
            self.parameters[0].add_(1)
        return 0.0


def test_training_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 0)
    state, stages = tmp_path / "state", [_Counting(), _Counting(breaks=True)]
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages, state)  # type: ignore[arg-type]
    again = [_Counting(), _Counting()]
    run_stages(again, state)  # type: ignore[arg-type]
    assert (again[0].taken, again[1].taken[0], len(again[1].taken)) == ([], 30, 20)
    assert [stage.parameters[0].item() for stage in again] == [50, 50]


def test_what_is_taught_depends_on_all_that_decides_it(checkpoint: Path, tmp_path: Path) -> None:
    world = build(SMALL, tmp_path)
    places = [
        place(tmp_path, checkpoint, world, RECIPE),
        place(tmp_path, checkpoint, world, Recipe()),
        place(tmp_path, checkpoint, world, RECIPE, world.targets["patient"]),
    ]
    assert len(set(places)) == 3
    folder = train(places[2], checkpoint, world, RECIPE, world.targets["patient"], "cpu")
    before, after = (load_vlm(each, "cpu").model.state_dict() for each in (checkpoint, folder))
    changed = {name for name in before if not torch.equal(before[name].bfloat16(), after[name].bfloat16())}
    text = {name for name in changed if "language_model" in name or "lm_head" in name}
    assert text == {name for name in before if "language_model.layers" in name and "_proj" in name}
    assert {name for name in before if "multi_modal_projector" in name} <= changed
    assert not folder.with_name(f"{folder.name}.state").exists()


def test_rows_stand_in_the_order_of_what_matters_and_know_what_they_need() -> None:
    levels = {"institution": ("i1", "i2"), "patient": ("p1", "p2", "p3")}
    tasks = row_tasks(levels, list(WAYS), most=2, country_count=3)
    assert len(tasks) == len(set(tasks))
    assert [str(task) for task in tasks[:2]] == [
        "taught, institution, i1: untouched",
        "taught, institution, i1: retrained",
    ]
    counted = {name: sum(task.method == name for task in tasks) for name in WAYS}
    assert {counted[name] for name in ("untouched", "retrained", "chip edit", LINEAR)} == {5 + 3}
    assert (counted[f"{LINEAR}, keep nothing"], counted["npo"]) == (2 + 3 + 2, 2 + 2 + 2)
    assert needs(RowTask(BEFORE, "country", "peru", "npo")) == (Setup(TEXTS),)
    assert needs(RowTask(TAUGHT, "patient", "p1", "npo"))[1:] == (Setup(TRAINING), Setup(TRAINING, "patient"))


def _works(tasks: Sequence[Task]) -> list[Any]:
    """What they do."""
    return [task.call.args[0] for task in tasks if isinstance(task.call, partial)]


def test_a_failure_is_said_and_the_others_go_on() -> None:
    names = ("untouched", "npo", "idk")
    tasks = [RowTask(BEFORE, "country", "peru", name) for name in names]
    tasks.append(RowTask(TAUGHT, "patient", "p1", "npo"))
    said, written = list[str](), list[int]()
    run = Run(
        tasks, [PretrainedRow(BEFORE, "country", "peru", "idk")], lambda rows: written.append(len(rows)), said.append
    )
    texts, training, retraining = run.tasks()  # no row before them
    assert _works([texts, training, retraining]) == [Setup(TEXTS), Setup(TRAINING), Setup(TRAINING, "patient")]
    first, second = texts.then(None)
    assert _works([first, second]) == tasks[:2]
    assert max(texts.rank, training.rank, retraining.rank) < first.rank < second.rank
    training.failed(RuntimeError("no memory"))
    assert not retraining.then(None)
    assert not first.then(PretrainedRow(BEFORE, "country", "peru", "untouched"))
    second.failed(ValueError("broken"))
    assert run.waiting == [tasks[3]]
    assert written == [2, 3]
    assert [row.refused for row in run.rows] == [None, None, "failed: ValueError('broken')"]
    assert sum(line.startswith("FAILED") for line in said) == 2


def _row(method: str, trained: float, paraphrased: float) -> PretrainedRow:
    exact = {"target": {"trained": trained, "paraphrased": paraphrased}}
    return PretrainedRow(TAUGHT, "patient", "p1", method, exact_match=exact)


def test_what_was_never_known_cannot_be_forgotten() -> None:
    assert learning_faults([_row("untouched", 0.96, 0.91), _row("retrained", 0.1, 0.1)]) == []
    low = learning_faults([_row("untouched", 0.94, 0.91), _row("retrained", 0.1, 0.5)])
    assert low == [
        "trained questions: 0.940 are answered, 0.95 must be",
        "p1: answered by 0.410 more than without it, 0.5 is the least",
    ]


def test_settings_are_tried_from_the_strongest_to_the_weakest() -> None:
    grid = ChipEdit.grid()
    assert [spread(grid, count) for count in (1, 2, 3, 9)] == [
        [grid[0]],
        [grid[0], grid[5]],
        [grid[0], grid[2], grid[5]],
        grid,
    ]


@pytest.mark.slow
def test_a_tiny_run_goes_on_where_it_was(checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    small = (
        "--institutions 3 --targets 1 --steps 3 --batch 64 --align-steps 3 --texts 4 --questions 3 --trials 1"
        " --tuning-steps 1 --countries 1 --most 1 --level patient --device cpu"
    )
    options = ["--checkpoint", str(checkpoint), "--cache", str(cache), "--json", str(file), *small.split()]
    some = ["--method", "untouched", "--method", "retrained"]
    result = CliRunner().invoke(app, [*options, *some], catch_exceptions=False)
    assert result.exit_code == 0
    assert len(read_rows(file)[1]) == 3  # countries have no model without them
    result = CliRunner().invoke(app, [*options, "--resume"], catch_exceptions=False)
    header, rows = read_rows(file)
    assert {row["method"] for row in rows} == set(WAYS)
    assert header["options"]["trials"] == 1
    failed = [row for row in rows if (row["refused"] or "").startswith("failed")]
    assert not failed
    assert "FAILED" not in result.output
