"""Whatever befalls a run: the source is untouched, and the output is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import chip
from chip.checkpoint.model_card import CARD
from chip.checkpoint.receipt import read_receipt
from chip.checkpoint.verify import verify
from chip.errors import RunError
from chip.methods import find_methods
from tests.families import UNTRAINED, UNTRAINED_OPTIONS, build_with_records
from tests.folders import contents, into_cache

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "cli.py"), "edit", "ckpt", "--forget", "patient_1", "--device", "cpu"]
COMMAND += UNTRAINED_OPTIONS
pytestmark = pytest.mark.filterwarnings("ignore:few questions")  # of a model that knows nothing, that is no loss


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny checkpoint, and its records."""
    return build_with_records(tmp_path, "llava")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


KILLS = 29


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "outcomes"),
    [([], {"absent", "whole"}), (["--overwrite"], {"old", "whole"})],
    ids=["absent", "present"],
)
def test_a_killed_run_leaves_the_source_as_it_was_and_no_half_output(
    folder: Path, options: list[str], outcomes: set[str]
) -> None:
    """Without an output of before in its place, and with one."""
    command = [sys.executable, "-m", "tests.killing", str(folder), "--kills", str(KILLS), *options]
    told = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
    killed = [outcome for killed, outcome in told["outcomes"] if killed]
    assert len(killed) >= 0.85 * KILLS  # a few by time come too late
    assert outcomes <= set(killed) <= outcomes | {"absent"}  # between two renames the old one is gone already
    assert told["cleaned"]
    assert all(told["cleaned"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_in_one_line_and_leaves_no_debris(folder: Path, number: signal.Signals) -> None:
    before = contents(folder)
    process = subprocess.Popen([*COMMAND, "--out", "out"], cwd=folder, stderr=subprocess.PIPE, text=True)
    while not (folder / ".out.chip").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number
    assert said.splitlines()[-1] == "chip: interrupted"
    assert "Traceback" not in said
    assert contents(folder) == before
    assert names(folder) == {"ckpt", "images", "records.jsonl"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(  # in the middle of the copy, with bytes enough
            "nr_inodes=8", "disk/out: No space left on device", marks=pytest.mark.slow
        ),
        pytest.param("size=300k", "bytes are needed", marks=pytest.mark.slow),
        pytest.param("ro", "not a folder one can write to", marks=pytest.mark.slow),
    ],
    ids=["crowded", "small", "locked"],
)
def test_a_full_or_read_only_disk_is_one_line(folder: Path, options: str, message: str) -> None:
    """A disk of memory, which a user may mount in a name space of his own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs Linux's user name spaces")
    before = contents(folder)
    (folder / "disk").mkdir()
    script = f'mount -t tmpfs -o {options} tmpfs disk; "$@"; code=$?; ls -A disk; exit $code'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *COMMAND, "--retain-weight", "8", "--out", "disk/out"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode in (1, 2)
    assert message in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    assert contents(folder) == before


def test_a_source_that_changes_during_the_run_is_an_error(folder: Path) -> None:
    @contextmanager
    def progress(what: str, _: int) -> Iterator[Callable[[int], None]]:
        if what == "asking after":
            shard = next((folder / "ckpt").glob("*.safetensors"))
            os.utime(shard)
        yield lambda _: None

    with pytest.raises(RunError, match="changed while it was read"):
        chip.edit(folder / "ckpt", ["patient_1"], device="cpu", progress=progress, **UNTRAINED)
    assert names(folder) == {"ckpt", "images", "records.jsonl"}


def test_what_is_put_into_the_old_output_during_the_run_is_not_lost(folder: Path) -> None:
    chip.edit(folder / "ckpt", ["patient_1"], device="cpu", **UNTRAINED)

    @contextmanager
    def progress(what: str, _: int) -> Iterator[Callable[[int], None]]:
        if what == "asking after":
            (folder / "ckpt-edited" / "thesis.tex").write_text("years of work")
        yield lambda _: None

    with pytest.raises(chip.InputError, match=r"holds thesis.tex, which chip did not write"):
        chip.edit(folder / "ckpt", ["patient_1"], device="cpu", overwrite=True, progress=progress, **UNTRAINED)
    assert (folder / "ckpt-edited" / "thesis.tex").read_text() == "years of work"
    assert chip.verify(folder / "ckpt-edited").faults == ("thesis.tex: not in the receipt",)
    assert names(folder) == {"ckpt", "ckpt-edited", "images", "records.jsonl"}


@pytest.mark.parametrize("out", [".", "ckpt", "ckpt/out", "images", "records.jsonl"])
def test_records_images_and_sources_are_never_overwritten(folder: Path, out: str) -> None:
    """Though the records lie where a checkpoint once lay."""
    shutil.copytree(folder / "ckpt", folder / "other" / "ckpt")
    for name in ("records.jsonl", "ckpt/config.json"):
        shutil.copy(folder / name, folder / "other")
    shutil.copytree(folder / "images", folder / "other" / "images")
    before = contents(folder)
    elsewhere = folder / "other" / "ckpt" if out == "." else folder / "ckpt"
    output = folder / "other" if out == "." else folder / out
    with pytest.raises(chip.InputError, match=r"^out="):
        chip.edit(elsewhere, ["patient_1"], records=folder / "records.jsonl", out=output, overwrite=True, device="cpu")
    ckpt = folder / "ckpt"
    with pytest.raises(chip.InputError, match=r"^out="):
        chip.edit(ckpt, ["patient_1"], out=output, overwrite=True, dry_run=True, device="cpu")
    assert contents(folder) == before


@pytest.mark.slow
def test_two_runs_onto_one_output_do_not_mix(folder: Path) -> None:
    runs = [subprocess.Popen(COMMAND, cwd=folder, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate()[1] for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes == [0, 2]
    assert any("another run is writing it" in text or "is not empty" in text for text in said)
    assert chip.verify(folder / "ckpt-edited", folder / "ckpt").faults == ()
    assert names(folder) == {"ckpt", "ckpt-edited", "images", "records.jsonl"}


@pytest.mark.filterwarnings("ignore:.*no image of the target's own", "ignore:.*has several answers")
def test_an_edit_that_would_change_nothing_is_refused(folder: Path) -> None:
    """A gate goes by the target's images, and there are none."""
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({key: row[key] for key in row if key != "image"}) + "\n" for row in rows)
    (folder / "records.jsonl").write_text(text)
    with pytest.raises(chip.InputError, match=r"^method='gated': changes nothing of this model for this target"):
        chip.edit(folder / "ckpt", ["patient_1"], method=find_methods()["gated"](), device="cpu", **UNTRAINED)
    assert names(folder) == {"ckpt", "images", "records.jsonl"}


def test_records_in_the_checkpoint_are_refused(folder: Path) -> None:
    shutil.move(folder / "records.jsonl", folder / "ckpt")
    shutil.move(folder / "images", folder / "ckpt")
    with pytest.raises(chip.InputError, match="lies in the checkpoint"):
        chip.edit(folder / "ckpt", ["patient_1"], records=folder / "ckpt" / "records.jsonl", device="cpu")


TELLING = {
    "prose": ("README.md", "Trained on Patient 1, and others."),
    "a study": ("notes/visits.csv", "visits\nSTUDY-1\n"),
    "settings": ("args.json", '{"run": "/data/patient\\u005f1/7"}'),
    "a file's name": ("notes/patient_1.txt", "A visit."),
    "a file's name as an address": ("notes/patient%5F1.txt", "A visit."),
}


@pytest.mark.parametrize("kind", TELLING)
def test_what_names_the_target_is_not_copied(folder: Path, kind: str) -> None:
    name, text = TELLING[kind]
    (folder / "ckpt" / "notes").mkdir()
    (folder / "ckpt" / name).write_text(text)
    with pytest.raises(chip.InputError, match=rf"{name}: names (patient_1|study_1), which is to be forgotten"):
        chip.edit(folder / "ckpt", ["patient_1"], out=folder / "out", device="cpu", **UNTRAINED)
    assert not (folder / "out").exists()


def test_what_is_like_a_name_may_be_copied(folder: Path) -> None:
    (folder / "ckpt" / "README.md").write_text("Findings of patient_10, patient_11 and others.")
    report = chip.edit(folder / "ckpt", ["study_1/findings"], label="findings", device="cpu", **UNTRAINED)
    assert report.label == "findings"


def test_a_name_that_gets_into_the_source_during_the_run_is_found_in_the_copy(folder: Path) -> None:
    @contextmanager
    def progress(what: str, _: int) -> Iterator[Callable[[int], None]]:
        if what == "asking before":
            (folder / "ckpt" / "README.md").write_text("Trained on Patient 1.")
        yield lambda _: None

    with pytest.raises(RunError, match=r"README.md: what was written names patient_1"):
        chip.edit(folder / "ckpt", ["patient_1"], device="cpu", progress=progress, **UNTRAINED)
    assert names(folder) == {"ckpt", "images", "records.jsonl"}


@pytest.mark.parametrize("label", ["patient_1", "request of Patient 1, 2026", "study_1"])
def test_a_label_that_tells_is_refused(folder: Path, label: str) -> None:
    with pytest.raises(chip.InputError, match=r"^label=.*names (patient_1|study_1)"):
        chip.edit(folder / "ckpt", ["patient_1"], label=label, device="cpu")


def test_a_model_of_the_hub_is_edited_beside_its_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ckpt" / CARD).write_text("---\nlicense: mit\ntags:\n- chest\n---\n# Of lungs\n")
    cache = folder / "cache"
    snapshot = into_cache(folder / "ckpt", cache)
    shutil.rmtree(folder / "ckpt")
    before = contents(cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(folder)  # the records lie here
    report = chip.edit("org/name", ["patient_1"], revision="main", device="cpu", **UNTRAINED)
    assert report.output == "name-edited"
    assert contents(cache) == before
    out = folder / "name-edited"
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in out.rglob("*") if path.is_file())
    assert read_receipt(out).hub == {"model": f"org/name@{snapshot.name}"}
    into_cache(snapshot, cache, commit=10 * "abcd")  # what was edited is a commit, and no branch
    (cache / "models--org--name" / "snapshots" / (10 * "abcd") / "config.json").unlink()
    assert verify(out, "org/name").faults == ()
    card = ModelCard.load(out / CARD)
    assert card.text.startswith("# Of lungs\n\n## Edited to forget\n")
    assert card.data.to_dict() == {
        "license": "mit",
        "tags": ["chest", "machine-unlearning"],
        "base_model": "org/name",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
    }
    into_cache(snapshot, cache, "org/patient_1")
    with pytest.raises(chip.InputError, match=r"^org/patient_1@0f1e.*: names patient_1"):
        chip.edit("org/patient_1", ["patient_1"], device="cpu")
