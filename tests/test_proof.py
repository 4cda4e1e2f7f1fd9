"""What can be shown of an edit later: by whom it is signed, what it is made of, and that it can be made again."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chip.checkpoint.bom import bom
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.receipt import RECEIPT, read_receipt, write_receipt
from chip.checkpoint.signing import SIGNATURE
from chip.edit_options import EditOptions
from chip.errors import InputError
from chip.methods import DEFAULT
from chip.methods.guard import RANK
from chip.progress import silent
from chip.recording.guard_file import GuardFile
from chip.reproduction import reproduce
from tests.command import run
from tests.families import UNTRAINED_OPTIONS, build_with_records
from tests.signing_keys import Keys
from tests.test_old_receipt import write_checkpoint, write_edited
from tests.test_receipt import NEW, edit_folder

OPTIONS = ("--retain-weight", "8", "--layers", "1-1", "--target-modules", "down", "--keep", "none", "--batch-size", "8")

pytestmark = pytest.mark.filterwarnings("ignore:few questions")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Path:
    """A folder with a small model, its records, and `edited`, which is signed. A part of the model is edited."""
    folder = build_with_records(tmp_path_factory.mktemp("proof"), "llava")
    out = ("--out", folder / "edited", "--label", "request 7", "--sign", keys["ours"][0])
    request = ("edit", folder / "ckpt", "--forget", "patient_1", "--device", "cpu")
    assert run(*request, *OPTIONS, *out, *UNTRAINED_OPTIONS) == 0
    return folder


def test_an_edit_is_signed_and_says_what_it_was(signed: Path, keys: Keys) -> None:
    assert run("verify", signed / "edited", "--original", signed / "ckpt", "--public-key", keys["ours"][1]) == 0
    assert run("verify", signed / "edited", "--public-key", keys["theirs"][1]) == 1
    receipt = read_receipt(signed / "edited")
    assert receipt.arguments == {
        "settings": {"retain_weight": 8.0},
        "target_modules": ["down"],
        "layers": "1-1",
        "keep": ["none"],
        "keep_tokens": None,
        "keep_model": False,
        "batch_size": 8,
        "rank": None,
        "all_records": False,
        "guard": False,
    }
    assert receipt.environment is not None
    assert receipt.environment["torch"] == torch.__version__
    assert receipt.environment["dtype"] == "float32"
    assert receipt.figures is not None
    assert set(receipt.figures["groups"]) == {"target", "siblings", "other"}
    assert (receipt.version, receipt.attacks) == (DEFAULT.version, [])
    assert receipt.sequence is not None
    assert receipt.sequence.number == 1
    for name in (RECEIPT, SIGNATURE):
        assert b"patient_1" not in (signed / "edited" / name).read_bytes()
        assert str(signed).encode() not in (signed / "edited" / name).read_bytes()


def test_a_key_that_cannot_be_used_is_refused_before_the_edit(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: Keys
) -> None:
    inside = tmp_path / "ckpt" / "key.pem"
    shutil.copytree(signed / "ckpt", inside.parent)
    shutil.copy(keys["ours"][0], inside)
    request = ("edit", inside.parent, "--records", signed / "records.jsonl", "--forget", "patient_1", "--dry-run")
    for key, message in ((tmp_path / "no.pem", "cannot be used (No such file"), (inside, "would be copied with it")):
        assert run(*request, "--sign", key) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert run(*request, "--sign-certificate", inside) == 2
    assert "--sign-certificate" in capsys.readouterr().err.splitlines()[-1]


def test_a_bill_of_materials_follows_its_schema_and_names_nobody(signed: Path) -> None:
    text = bom(signed / "edited")
    assert text == bom(signed / "edited")
    content, receipt = json.loads(text), read_receipt(signed / "edited")
    made = content["metadata"]["component"]
    assert (made["type"], made["name"]) == ("machine-learning-model", "LlavaForConditionalGeneration")
    assert [each["version"] for each in made["pedigree"]["ancestors"]] == [receipt.source_digest[:12]]
    (patch,) = made["pedigree"]["patches"]
    for name, tensor in receipt.tensors.items():
        assert f"{name} {tensor.before} {tensor.after}" in patch["diff"]["text"]["content"]
    assert {each["name"]: each["hashes"][0]["content"] for each in content["components"]} == {
        name: file.sha256 for name, file in receipt.files.items()
    }
    metrics = made["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "exact_match", "value": "0.0000", "slice": "target, trained, after the edit"} in metrics
    assert made["modelCard"]["considerations"]["technicalLimitations"] == receipt.limits
    assert "patient_1" not in text
    assert str(signed) not in text


def test_a_bill_of_materials_of_a_sequence_has_all_ancestors(source: Checkpoint, tmp_path: Path) -> None:
    """And its form is checked."""
    (source.folder / "config.json").write_text(json.dumps({"model_type": "any", "architectures": ["Model"]}))
    first = edit_folder(Checkpoint.open(source.folder), tmp_path / "first")
    edit_folder(Checkpoint.open(tmp_path / "first"), tmp_path / "second", {name: new + 1 for name, new in NEW.items()})
    pedigree = json.loads(bom(tmp_path / "second"))["metadata"]["component"]["pedigree"]
    assert {each["version"] for each in pedigree["ancestors"]} == {first.source_digest[:12], first.result_digest[:12]}
    assert len(pedigree["patches"]) == 2
    write_receipt(tmp_path / "second", replace(read_receipt(tmp_path / "second"), figures={"groups": [1]}))
    with pytest.raises(InputError, match="its receipt says what no edit writes"):
        bom(tmp_path / "second")
    write_receipt(tmp_path / "second", replace(read_receipt(tmp_path / "second"), figures={}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chip.checkpoint.bom._model_card", lambda *_: {"modelParameters": 3})
        with pytest.raises(InputError, match="does not follow its schema"):
            bom(tmp_path / "second")


def test_an_edit_that_is_made_again_is_the_same(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ("reproduce", signed / "edited", "--source", signed / "ckpt", "--forget", "patient_1", "--device", "cpu")
    assert run(*again) == 0
    assert capsys.readouterr().out == "the same: all 1 changed tensor, bit for bit\n"
    assert {path.name for path in signed.iterdir()} == {"ckpt", "edited", "images", "records.jsonl"}


def test_only_the_weights_that_were_edited_are_edited_again(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reproduce", signed / "edited", "--source", signed / "edited", "--forget", "patient_1") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"chip: --source \S+: not the weights that were edited; give the folder .*", line)


def test_what_an_older_receipt_does_not_say_is_left_out(tmp_path: Path) -> None:
    """A bill of materials has no figures then, and the edit cannot be made again."""
    edited, original = write_edited(tmp_path / "out"), write_checkpoint(tmp_path / "ckpt", (1, 2, 3, 4, 5, 6))
    made = json.loads(bom(edited))["metadata"]["component"]
    assert (made["name"], made["modelCard"]["modelParameters"]["architectureFamily"]) == ("model", "any")
    assert made["modelCard"].keys() == {"modelParameters"}
    with pytest.raises(InputError, match=r"written by chip 0\.1\.0, which did not record"):
        reproduce(edited, original, ["patient_1"])


ODD_ARGUMENTS = (
    *({"settings": {"retain_weight": [8]}}, {"target_modules": [1]}, {"layers": 3}, {"keep": [None]}),
    *({"batch_size": "8"}, {"batch_size": True}, {"more": 1}),
)


@pytest.mark.parametrize("odd", ODD_ARGUMENTS, ids=str)
def test_what_no_edit_is_asked_for_is_not_made_again(signed: Path, tmp_path: Path, odd: dict[str, Any]) -> None:
    receipt = read_receipt(signed / "edited")
    write_receipt(tmp_path, replace(receipt, arguments={**(receipt.arguments or {}), **odd}))
    with pytest.raises(InputError, match="asks for what no edit was asked"):
        reproduce(tmp_path, signed / "ckpt", ["patient_1"])


def test_files_to_keep_by_are_given_again(signed: Path, tmp_path: Path) -> None:
    receipt = read_receipt(signed / "edited")
    write_receipt(tmp_path, replace(receipt, arguments={**(receipt.arguments or {}), "keep": ["auto", "file"]}))
    with pytest.raises(InputError, match="keep=None: the edit was given files to keep by; give the same ones"):
        reproduce(tmp_path, signed / "ckpt", ["patient_1"])


@pytest.mark.slow
def test_an_edit_of_somebody_else_is_told_by_its_weights(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ("--source", signed / "ckpt", "--forget", "patient_2", "--device", "cpu")
    assert run("reproduce", signed / "edited", *again) == 1
    assert capsys.readouterr().out.endswith("other records, nodes or data to keep give such a difference\n")
    shutil.copy(signed / "edited" / RECEIPT, tmp_path / "copy.json")
    assert run("reproduce", tmp_path / "copy.json", *again, "--json") == 1
    shown = json.loads(capsys.readouterr().out)
    assert list(shown["differ"].values()) == [None]
    ((then, now),) = shown["relative_change"].values()
    assert then != now


@pytest.mark.slow
def test_a_second_edit_is_counted_and_evaluated_in_a_statement(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: Keys
) -> None:
    (ours, public), second, statement = keys["ours"], tmp_path / "second", tmp_path / "evaluation.json"
    request = ("--forget", "patient_2", "--device", "cpu", "--records", signed / "records.jsonl")
    assert run("edit", signed / "edited", *request, *OPTIONS, "--out", second, "--sign", ours, *UNTRAINED_OPTIONS) == 0
    line = (
        "\nedit 2 of a sequence: the edits add up to .*; those who stay have lost 0\\.0.. of their answers' probability"
    )
    assert re.search(line, capsys.readouterr().out)
    assert run("edit", signed / "edited", *request, *OPTIONS, "--dry-run", "--force") == 0
    shown, first, written = capsys.readouterr().out, read_receipt(signed / "edited"), read_receipt(second).sequence
    assert written is not None
    assert written.total is not None
    assert f"\nwould be edit 2 of a sequence: the edits add up to {written.total:.2f} times the norm" in shown
    assert f"\nedited weights: {first.source_digest[:12]} → {first.result_digest[:12]}\n" in shown
    assert run("eval", second, *request, "--statement", statement, "--sign", ours, "--attacks", "wording") == 0
    assert b"patient_2" not in statement.read_bytes()
    by = ("--public-key", public, "--evaluation", statement)
    assert run("verify", second, "--original", signed / "edited", *by) == 0
    assert run("verify", signed / "edited", *by) == 1
    assert "about other files than these" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:an adapter can be taken off again")
def test_an_edit_that_was_written_as_an_adapter_is_made_again(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one of a checkpoint with an adapter merged first; what differs is told by what both make of the base."""
    ckpt, first, second = signed / "ckpt", tmp_path / "first", tmp_path / "second"
    request = ("--device", "cpu", "--records", signed / "records.jsonl", "--forget")
    options = (*OPTIONS, *UNTRAINED_OPTIONS)
    assert run("edit", ckpt, *request, "patient_1", *options, "--save", "adapter", "--out", first) == 0
    assert run("edit", ckpt, *request, "patient_2", *options, "--adapter", first, "--out", second) == 0
    capsys.readouterr()
    for folder, node, adapter in ((first, "patient_1", ()), (second, "patient_2", ("--adapter", first))):
        assert run("reproduce", folder, "--source", ckpt, *adapter, *request, node) == 0
        assert capsys.readouterr().out == "the same: all 1 changed tensor, bit for bit\n"
    assert run("reproduce", second, "--source", first, "--base", ckpt, *request, "patient_2") == 0
    assert run("reproduce", first, "--source", ckpt, *request, "patient_2", "--json") == 1
    ((name, distance),) = json.loads(capsys.readouterr().out.partition("\n")[2])["differ"].items()
    assert name.endswith("down_proj.weight")
    assert distance > 0.5
    shutil.copy(first / RECEIPT, tmp_path / "copy.json")
    assert run("reproduce", tmp_path / "copy.json", "--source", ckpt, *request, "patient_2") == 1
    assert "by how much, only the edited folder can show" in capsys.readouterr().out


def test_a_guarded_edit_says_so_and_nothing_of_what_is_guarded(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text("4f" * 32)
    (tmp_path / "key").chmod(0o600)
    guard = ("--guard", tmp_path / "guard", "--guard-key", tmp_path / "key")
    request = ("--forget", "patient_2", "--device", "cpu", "--records", signed / "records.jsonl", *guard)
    model, out = signed / "edited", tmp_path / "second"
    assert run("edit", model, *request, *OPTIONS, "--out", out, *UNTRAINED_OPTIONS) == 0
    receipt = read_receipt(out)
    assert receipt.arguments is not None
    assert receipt.arguments["guard"] is True
    assert "guard" not in receipt.to_json()["settings"]
    assert [path.name for path in out.rglob("*guard*")] == []
    states = GuardFile.open(Checkpoint.open(out), tmp_path / "third", options(tmp_path), silent, DEFAULT())
    assert states is not None
    (factor,) = states.guard.factors.values()
    assert factor.isfinite().all()
    assert 1 <= len(factor) <= RANK
    with pytest.raises(InputError, match="of an edit with a guard, which it does not hold"):
        reproduce(out, model, ["patient_2"], records=signed / "records.jsonl")
    capsys.readouterr()
    assert run("edit", signed / "ckpt", *request, *OPTIONS, "--out", tmp_path / "other") == 2
    assert "chip: --guard " in capsys.readouterr().err


def options(folder: Path) -> EditOptions:
    return {"guard": folder / "guard", "guard_key": folder / "key"}
