"""The command as a user meets it: what it prints, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chip.cli.arguments import Running
from chip.cli.edit import Editing
from chip.cli.main import main
from chip.data.hierarchy import Hierarchy
from chip.edit_options import EditOptions
from tests.families import UNTRAINED_OPTIONS, build, write_records
from tests.judging import said


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Chip = Callable[..., Result]


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chip:
    """Runs the command in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["chip", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return run


def refused(result: Result, *words: str) -> None:
    """Exit 2, nothing on stdout, one line on stderr that holds the words."""
    assert (result.code, result.out) == (2, "")
    lines = [line for line in result.err.splitlines() if line.startswith("chip: ")]
    assert len(lines) == 1
    assert result.err.rstrip().endswith(lines[0])
    for word in words:
        assert word in lines[0]


@pytest.fixture
def small(hospital: Path, hierarchy: Hierarchy, tmp_path: Path) -> Path:
    """A hospital to break: the checkpoint and the records of two institutions, asked little."""
    folder = tmp_path / "small"
    shutil.copytree(hospital / "ckpt", folder / "ckpt")
    shutil.copytree(hospital / "images", folder / "images")
    lines = (hospital / "records.jsonl").read_text().splitlines(keepends=True)
    kept = [
        line
        for line, record in zip(lines, hierarchy.records, strict=True)
        if record.path[0] in ("institution_1", "institution_2") and len(record.path) != 1
    ]
    (folder / "records.jsonl").write_text("".join(kept[::3]))
    return folder


def _rewrite(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    file = folder / "records.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    change(rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_options_of_commands_are_keywords_of_functions() -> None:
    of_command = {field.name for group in (Editing, Running) for field in fields(group)}
    assert {*of_command, "sign"} == EditOptions.__optional_keys__ - {"max_memory"}  # a mapping, for Python alone


def _edit(chip: Chip, folder: Path, node: str = "patient_2", *more: object) -> Result:
    result = chip("edit", folder / "ckpt", "--forget", node, "--device", "cpu", *more)
    left = {path.name for path in folder.iterdir()} - {"ckpt", "images", "records.jsonl", "ckpt-edited"}
    assert not left
    if result.code:
        assert not (folder / "ckpt-edited").exists()
    return result


def test_json_is_one_object_and_nothing_else(chip: Chip, small: Path) -> None:
    result = _edit(chip, small, "patient_2", "--retain-weight", "8", "--json")
    report = json.loads(result.out)
    assert result.code == 0
    assert report["method"] == "combined"
    assert report["output"] == str(small / "ckpt-edited")
    assert report["changed_tensors"] == sorted(report["relative_change"])
    assert set(report["groups"]) == {"target", "siblings", "other"}
    trained = report["groups"]["target"]["trained"]
    assert set(trained) == {"count", "chance", "exact_match", "answer_probability"}
    assert set(trained["exact_match"]) == {"before", "after"}
    assert trained["exact_match"]["before"] > 0.95 > trained["exact_match"]["after"]
    assert "patient_2" not in json.dumps(report["settings"])


def test_tables_for_people(chip: Chip, small: Path) -> None:
    edited = _edit(chip, small, "study_3/findings", "--method", "chip", "--top-k", "0.5", "--max-left", "1")
    assert edited.code == 0
    assert edited.out.splitlines()[-1].startswith("forgotten: the model gives ")
    for word in ("target", "siblings", "other", "paraphrased", "→", "mlp.gate_proj", "ckpt-edited", "top_k 0.5"):
        assert word in edited.out
    different = chip("diff", small / "ckpt", small / "ckpt-edited")
    assert different.code == 1
    assert "tensors differ" in different.out
    assert chip("diff", small / "ckpt", small / "ckpt").code == 0
    listed = chip("diff", small / "ckpt", small / "ckpt-edited", "--json")
    assert json.loads(listed.out)
    looked = chip("inspect", small / "ckpt")
    assert "llava" in looked.out
    assert "shielded 0-3" in looked.out
    assert json.loads(chip("inspect", small / "ckpt", "--json").out)["parameters"] > 1e6
    grown = chip("tree", small / "records.jsonl", "--depth", "2")
    assert "patient_2" in grown.out
    assert "study_3" not in grown.out
    refused(_edit_again(chip, small), "not empty")


@pytest.mark.filterwarnings("ignore:few questions")
def test_verify_tells_what_was_written_from_what_was_not(chip: Chip, tmp_path: Path) -> None:
    ckpt, out = build(tmp_path / "ckpt", "llava"), tmp_path / "ckpt-edited"
    write_records(tmp_path)
    assert _edit(chip, tmp_path, "patient_1", "--label", "request 7", "--link-unchanged", *UNTRAINED_OPTIONS).code == 0
    assert "- Request: request 7" in (out / "README.md").read_text()
    good = chip("verify", out, "--original", ckpt)
    assert good.code == 0
    for words in ("request 7", "14 files as written", "4 changed tensors as written", "bytes are the original's"):
        assert words in good.out
    assert "--original" in chip("verify", out).out
    assert json.loads(chip("verify", out, "--json").out)["good"] is True
    (out / "notes.txt").write_text("left behind")
    bad = chip("verify", out)
    assert bad.code == 1
    assert "notes.txt: not in the receipt" in bad.out
    assert json.loads(chip("verify", out, "--json").out)["faults"] == ["notes.txt: not in the receipt"]
    refused(chip("verify", ckpt), "no chip_receipt.json here")


def test_a_target_that_is_still_there_is_written_and_said(chip: Chip, small: Path) -> None:
    edited = chip("edit", small / "ckpt", "--forget", "patient_2", "--method", "chip", "--device", "cpu")
    assert edited.code == 3
    last = edited.out.splitlines()[-1]
    assert last.startswith("not forgotten, the target is still there: the model gives 0.")
    for words in (
        "one never trained on it would give 0.",
        "siblings keep 1.00 of 1.00",
        "another --method may forget more",
    ):
        assert words in last
    assert chip("verify", small / "ckpt-edited", "--original", small / "ckpt").code == 0
    options = ("--method", "chip", "--overwrite", "--json", "--keep", "none")
    enough = _edit_again(chip, small, *options, "--max-left", "1")
    assert (enough.code, json.loads(enough.out)["outcome"]["forgotten"]) == (0, True)
    refused(_edit_again(chip, small, *options, "--max-left", "1.1"), "--max-left", "between 0 and 1")


def test_a_target_that_the_model_does_not_know_is_refused(chip: Chip, tmp_path: Path) -> None:
    build(tmp_path / "ckpt", "llava")
    write_records(tmp_path)
    for option in ("--json", "--dry-run"):
        refused(_edit(chip, tmp_path, "patient_1", option), "--forget institution_1/patient_1", "0.00", "force")
    forced = _edit(chip, tmp_path, "patient_1", "--force", "--retain-weight", "8", "--dry-run")
    assert forced.code == 0
    assert "the model gives 0.00 of the target's answers, one never trained on it would give 0.00" in forced.out


@pytest.mark.filterwarnings("ignore:few questions", "ignore:.* are also retained ones")
def test_what_is_promised_is_measured(chip: Chip, small: Path) -> None:
    """A sibling has the target's records, and no question that the retain weight is chosen by."""

    def double(rows: list[dict[str, Any]]) -> None:
        rows[:] = [row for row in rows if row["institution"] == "institution_1"]
        near = [row for row in rows if row.get("patient") in ("patient_1", "patient_3", "patient_4")]
        for row in near[::2]:
            row["split"] = "validation"
        rows += [
            row | {"patient": "patient_99", "study": f"{row['study']}9"}
            if "study" in row
            else row | {"patient": "patient_99"}
            for row in rows
            if row.get("patient") == "patient_2"
        ]

    _rewrite(small, double)
    options = ("--max-retain-drop", "0.1", "--keep", "none", "--layers", "2-3")
    failed = _edit(chip, small, "patient_2", *options)
    assert failed.code == 1
    assert "siblings lose 0." in failed.err.splitlines()[-1]
    assert "may lose 0.1: the trials had shown less; nothing was written" in failed.err.splitlines()[-1]
    accepted = _edit_again(chip, small, *options, "--accept")
    assert accepted.code in (0, 3)
    assert "where 0.1 was allowed (accepted)" in accepted.out.splitlines()[-1]


def _edit_again(chip: Chip, folder: Path, *more: object) -> Result:
    return chip("edit", folder / "ckpt", "--forget", "patient_2", "--device", "cpu", *more)


def test_diff_ends_as_diff_does_and_writes_a_page(chip: Chip, tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"x": torch.full((2, 2), value)}, tmp_path / name / "model.safetensors")
    a, b, page = tmp_path / "a", tmp_path / "b", tmp_path / "page.html"
    refused(chip("diff", a, b, "--html", tmp_path / "missing" / "page.html"), "missing")
    different = chip("diff", a, b, "--html", page, "--json")
    assert different.code == 1
    assert json.loads(different.out)["changed"][0]["relative_change"] == 1.0
    assert "1 of 1 tensor differs." in page.read_text(encoding="utf-8")
    assert str(tmp_path) not in page.read_text(encoding="utf-8")
    equal = chip("diff", a, a, "--html", page)
    assert (equal.code, equal.out.strip()) == (0, "equal")
    assert "bit for bit" in page.read_text(encoding="utf-8")
    refused(chip("diff", a, tmp_path / "c"), "no such folder")


def test_unknown_and_ambiguous_nodes(chip: Chip, small: Path) -> None:
    refused(_edit(chip, small, "patint_2"), "patint_2", "patient_2")
    refused(_edit(chip, small, "findings"), "findings", "study_")


def test_records_that_are_missing_or_broken(chip: Chip, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHIP_RECORDS", raising=False)
    records = small / "records.jsonl"
    whole = records.read_text()
    records.write_text(whole + "{broken\n")
    refused(_edit(chip, small), f"records.jsonl:{len(whole.splitlines()) + 1}")
    records.unlink()
    refused(_edit(chip, small), "--records", "CHIP_RECORDS")
    records.write_text(whole)
    image = small / json.loads(whole.splitlines()[40])["image"]
    image.write_bytes(image.read_bytes()[:50])
    refused(_edit(chip, small), image.name)
    image.unlink()
    refused(_edit(chip, small), image.name)


def test_a_question_too_long_for_the_model(chip: Chip, small: Path) -> None:
    _rewrite(small, lambda rows: rows[7].update(question="And then? " * 300))
    refused(_edit(chip, small), "records.jsonl:8", "tokens")


def test_nothing_to_keep_and_nothing_to_learn_from(chip: Chip, small: Path) -> None:
    def all_held_out(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["split"] = "paraphrased"

    refused(chip("edit", small / "ckpt", "--forget", "institution_1", "--forget", "institution_2"), "nothing", "keep")
    _rewrite(small, all_held_out)
    refused(_edit(chip, small), "train")


def _drop_safetensors(ckpt: Path) -> None:
    for file in ckpt.glob("*.safetensors*"):
        file.unlink()


def _quantise(ckpt: Path) -> None:
    config = json.loads((ckpt / "config.json").read_text())
    (ckpt / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )


def _other_family(ckpt: Path) -> None:
    (ckpt / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))


def _unheard_of(ckpt: Path) -> None:
    (ckpt / "config.json").write_text(json.dumps({"model_type": "nonesuch", "architectures": ["NonesuchForAll"]}))


def _poison(ckpt: Path) -> None:
    for shard in ckpt.glob("*.safetensors"):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if name.endswith("layers.1.mlp.up_proj.weight"):
                tensor[0, 0] = torch.nan
                save_file(tensors, shard, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (_drop_safetensors, "safetensors"),
        (_quantise, "quanti"),
        (_other_family, "vision-language"),
        (_unheard_of, "nonesuch"),
        (_poison, "NaN"),
        (lambda ckpt: (ckpt / "tokenizer.json").unlink(), "processor"),
    ],
)
def test_checkpoints_that_cannot_be_edited(chip: Chip, small: Path, spoil: Callable[[Path], None], word: str) -> None:
    spoil(small / "ckpt")
    refused(_edit(chip, small), word)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--method", "magic"), "magic"),
        (("--variance-threshold", "0.9"), "--variance-threshold"),
        (("--neighbor-weight", "1.5"), "--neighbor-weight"),
        (("--layers", "2-9"), "--layers"),
        (("--layers", "some"), "--layers"),
        (("--target-modules", "connector,brain"), "brain"),
    ],
)
def test_settings_that_make_no_sense(chip: Chip, small: Path, options: tuple[str, ...], word: str) -> None:
    refused(_edit(chip, small, "patient_2", *options), word)


def test_an_evaluation_shows_groups_and_attacks(chip: Chip, small: Path) -> None:
    _rewrite(small, lambda rows: rows.__delitem__(slice(None, None, 2)))
    result = chip("eval", small / "ckpt", "--forget", "patient_2", "--attacks", "quantization", "--device", "cpu")
    assert result.code == 0
    for group in ("target", "siblings", "unrelated", "quantization: 4 bits"):
        assert f"\n{group} " in result.out
    assert "leaked in 16 draws: 1.00" in result.out
    assert "patient_2" not in result.out


def test_an_evaluation_stands_beside_another_model(chip: Chip, small: Path) -> None:
    ckpt = small / "ckpt"
    _rewrite(small, lambda rows: rows.__delitem__(slice(40, None)))
    report = json.loads(chip("eval", ckpt, "--forget", "patient_1", "--reference", ckpt, "--json").out)
    assert [row for row in report["rows"] if row in report["reference"]] == report["reference"]
    assert {row["value"] for row in report["rows"] if row["measure"] == "recovered_gap"} <= {0.0, 1.0, None}


def test_a_judge_is_asked_where_the_user_names_one(
    chip: Chip, small: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _rewrite(small, lambda rows: rows.__delitem__(slice(20, None)))
    monkeypatch.setenv("CHIP_JUDGE_KEY", "secret")
    ask, judge = ("eval", small / "ckpt", "--forget", "patient_1"), ("--judge", server.address, "--judge-model", "m")
    assert "judged right" not in chip(*ask).out
    assert server.sent == []  # nobody, by default
    server.reply = said("yes")
    result = chip(*ask, *judge)
    assert "judged right" in result.out
    assert f"questions and answers are sent to {server.address}\n" in result.err
    assert "secret" not in result.out + result.err
    asked = {record["question"] for record in map(json.loads, (small / "records.jsonl").read_text().splitlines())}
    for _, key, body in server.sent:
        assert (key, body["model"]) == ("Bearer secret", "m")
        assert body["messages"][-1]["content"].split("\n")[0].removeprefix("Question: ") in asked
    rows = json.loads(chip(*ask, *judge, "--json").out)["rows"]
    assert {row["value"] for row in rows if row["measure"] == "judged"} == {1.0}
    refused(chip(*ask, "--judge", server.address), "--judge", "--judge-model")
    refused(chip(*ask, "--judge", "ftp://judge", "--judge-model", "m"), "ftp://judge", "http")


def test_an_evaluation_refuses_what_it_does_not_know(chip: Chip, small: Path) -> None:
    refused(chip("eval", small / "ckpt", "--forget", "patient_2", "--attacks", "hypnosis"), "hypnosis", "relearning")
    refused(chip("eval", small / "ckpt", "--forget", "patient_99"), "patient_99")


@pytest.mark.parametrize("size", ["0", "-3", "many", "²"])
def test_a_batch_size_is_a_number_or_auto(chip: Chip, small: Path, size: str) -> None:
    refused(_edit(chip, small, "patient_2", f"--batch-size={size}"), "--batch-size", "auto")
