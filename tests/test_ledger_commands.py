"""The ledger beside edits and evaluations: a request from its receipt to the page for the file, on a tiny model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import chip
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.receipt import read_receipt, write_receipt
from chip.checkpoint.weights import weights_digest
from chip.cli.main import main
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.request import ForgetRequest
from chip.errors import ChipWarning, InputError, RunError
from chip.evaluation.rows import Evaluation
from chip.ledger import Ledger
from chip.ledger.entry import Destroyed, Edited, Failed
from chip.ledger.requests import State
from chip.methods import Chip
from chip.recording import targets
from chip.recording.by_hand import destroy, receive, record_edit, refuse, release
from chip.recording.dossier import dossier_of
from chip.recording.figures import evaluation_figures, evaluation_of
from chip.recording.runs import EvalRecord
from chip.recording.verification import verify_ledger
from chip.report.html.request import request_page
from tests.families import UNTRAINED, UNTRAINED_OPTIONS, build, write_records
from tests.ledgers import FIRST, KEY, OTHER_KEY

ROOT = Path(__file__).parents[1]
DEADLINE = date(2026, 12, 24)
NAMES = ("patient_1", "patient_2", "patient 1", "Cruz")
FORBIDDEN = ("deleted", "certified", "hipaa", "compliant", "guarantee", "proof")
FORGET = ("patient_1", "patient_2")
QUICK: dict[str, Any] = {"method": Chip(), "keep": ("none",), "device": "cpu", **UNTRAINED}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ckpt/`, `records.jsonl`, a ledger of two requests, and `edited/`: both of them in one edit."""
    folder = tmp_path_factory.mktemp("ward")
    records = write_records(folder)
    build(folder / "ckpt", "llava")
    ledger = ledger_in(folder)
    receive(ledger, "patient_1", records, label="case 1", basis="GDPR Art. 17 <b>", deadline=DEADLINE)
    receive(ledger, "patient_2", records)
    assert open_targets(ledger, folder / "ckpt") == ["institution_1/patient_1", "institution_1/patient_2"]
    chip.edit(folder / "ckpt", None, out=folder / "edited", ledger=ledger, **QUICK)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy, to go on with."""
    return Path(shutil.copytree(made, tmp_path / "ward"))


def ledger_in(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.jsonl", KEY, by="tester")


def hierarchy_beside(model: Path) -> Hierarchy:
    return Hierarchy(read_records(model.parent / "records.jsonl"))


def open_targets(ledger: Ledger, model: Path) -> list[str]:
    return targets.open_targets(ledger, Checkpoint.open(model), hierarchy_beside(model))


def edited_targets(ledger: Ledger, model: Path) -> list[str]:
    return targets.edited_targets(ledger, Checkpoint.open(model), hierarchy_beside(model))


def record_of(folder: Path, model: str, *nodes: str) -> EvalRecord:
    request = ForgetRequest.of(hierarchy_beside(folder / model), nodes)
    return EvalRecord(ledger_in(folder), request, Checkpoint.open(folder / model))


def states(folder: Path) -> list[State]:
    return [request.state for request in ledger_in(folder).read().history.requests.values()]


@pytest.fixture(scope="module")
def evaluation(made: Path) -> Evaluation:
    return chip.evaluate(made / "edited", FORGET, device="cpu", attacks="wording")


def record_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """As `evaluate(ledger=)` does."""
    with record_of(folder, "edited", *FORGET) as record:
        record.evaluated(evaluation)


def test_an_edit_adds_what_it_did_and_nothing_of_it_goes_into_the_model(made: Path) -> None:
    contents = ledger_in(made).read()
    entry = contents.chain.entries[-1]
    assert isinstance(entry.details, Edited)
    assert entry.requests == tuple(contents.history.requests)
    assert entry.details.source == weights_digest(Checkpoint.open(made / "ckpt"))
    assert entry.details.result == weights_digest(Checkpoint.open(made / "edited"))
    assert entry.details.figures is not None
    assert entry.details.figures["groups"]["target"]["trained"]["count"] == 8
    assert states(made) == [State.EDITED, State.EDITED]
    assert not verify_ledger(ledger_in(made), edited=[made / "edited"]).faults

    written = b"".join(path.read_bytes() for path in (made / "edited").rglob("*") if path.is_file())
    secrets = (*entry.requests, KEY.id, entry.digest, "case 1", "GDPR")
    assert not [secret for secret in secrets if secret.encode() in written]
    ledger = (made / "ledger.jsonl").read_text()
    assert not [name for name in NAMES if name.casefold() in ledger.casefold()]


def test_the_digest_of_weights_is_sha256sums(made: Path) -> None:
    command = "sha256sum *.safetensors | sha256sum"
    told = subprocess.run(command, shell=True, cwd=made / "ckpt", capture_output=True, text=True, check=True).stdout
    assert told.split()[0] == weights_digest(Checkpoint.open(made / "ckpt"))


def test_a_request_goes_its_way_to_the_end(folder: Path, evaluation: Evaluation) -> None:
    ledger = ledger_in(folder)
    with pytest.raises(InputError, match="is edited, and cannot be released"):
        release(ledger, folder / "edited")
    assert edited_targets(ledger, folder / "edited") == [f"institution_1/{patient}" for patient in FORGET]
    with pytest.raises(InputError, match="no request that waits for a release was edited into this model"):
        edited_targets(ledger, folder / "ckpt")
    record_evaluation(folder, evaluation)
    assert states(folder) == [State.EVALUATED, State.EVALUATED]
    assert len(release(ledger, folder / "edited").requests) == 2
    one = ledger.read().history.opened()[0].pseudonym[:12]
    assert len(destroy(ledger, Destroyed.ORIGINAL, [one]).requests) == 2  # one original, of both
    destroy(ledger, Destroyed.RECORDS, [one], note="shredded")
    assert states(folder) == [State.DONE, State.RELEASED]
    with pytest.raises(InputError, match="no request waits for an edit"):
        open_targets(ledger, folder / "edited")

    receive(ledger, "patient_3", folder / "records.jsonl")  # the next window begins with what was released
    assert open_targets(ledger, folder / "edited") == ["institution_2/patient_3"]
    with pytest.raises(InputError, match="not the model that the open requests are to be edited from"):
        open_targets(ledger, folder / "ckpt")
    assert not verify_ledger(ledger).faults


def test_an_evaluation_is_kept_as_it_was(evaluation: Evaluation) -> None:
    again = evaluation_of(json.loads(json.dumps(evaluation_figures(evaluation))))
    assert (again.attacks, again.levels, again.seed, again.skipped) == (
        *(evaluation.attacks, evaluation.levels, evaluation.seed, evaluation.skipped),
    )
    for old, new in zip(evaluation.rows, again.rows, strict=True):
        assert (old.group, old.split, old.measure, old.attack, old.count) == (
            *(new.group, new.split, new.measure, new.attack, new.count),
        )
        assert (old.value, old.low, old.high) == pytest.approx((new.value, new.low, new.high), rel=1e-5, nan_ok=True)
    for figures in ({}, {"rows": [[1]]}, {"rows": 3}):
        with pytest.raises(InputError, match="not as this version of chip writes them"):
            evaluation_of(figures)


def test_only_what_an_edit_wrote_is_evaluated(folder: Path) -> None:
    with pytest.raises(InputError, match="no edit in this ledger wrote the model"):
        record_of(folder, "ckpt", "patient_1")
    with pytest.raises(InputError, match="was never received"):
        record_of(folder, "edited", "patient_3")
    with pytest.raises(RunError), record_of(folder, "edited", "patient_1"):
        raise RunError("patient_1 does not fit")
    assert ledger_in(folder).read().chain.entries[-1].details == Failed("eval", "RunError")


def test_an_edit_that_fails_is_an_entry_that_names_nobody(folder: Path) -> None:
    ledger, before = ledger_in(folder), len(ledger_in(folder).read().chain.entries)
    quick = QUICK | {"force": False}
    with pytest.raises(InputError, match="the model does not know it"), pytest.warns(ChipWarning, match="1 other open"):
        chip.edit(folder / "ckpt", ["patient_1"], out=folder / "again", ledger=ledger, **quick)
    entries = ledger.read().chain.entries
    assert len(entries) == before + 1
    assert entries[-1].details == Failed("edit", "InputError")
    assert "patient" not in (folder / "ledger.jsonl").read_text()
    assert states(folder) == [State.EDITED, State.EDITED]


@pytest.mark.slow
def test_a_model_that_the_ledger_could_not_be_told_of_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_to_add(*_: object) -> None:
        raise RunError("no space")

    monkeypatch.setattr(Ledger, "add", refuse_to_add)
    with pytest.raises(RunError, match=r"again is written, and the ledger has no entry of it \(no space\)"):
        chip.edit(folder / "ckpt", FORGET, out=folder / "again", ledger=ledger_in(folder), **QUICK)
    assert not chip.verify(folder / "again").faults


def test_what_is_refused_before_it_begins_is_no_entry(folder: Path) -> None:
    before = (folder / "ledger.jsonl").read_bytes()
    inside = Ledger(folder / "again" / "ledger.jsonl", KEY)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ledger": Ledger(folder / "ledger.jsonl")}, "a ledger's key is needed"),
        ({"ledger": Ledger(folder / "ledger.jsonl", OTHER_KEY)}, "was written with another key"),
        ({"ledger": inside}, "lies in the model's folder"),
        ({"ledger": ledger_in(folder), "forget": ["patient_3"]}, "was never received"),
    ]
    for given, told in cases:
        arguments = {"forget": ["patient_1"], **QUICK, **given}
        with pytest.raises(InputError, match=told):
            chip.edit(folder / "ckpt", out=folder / "again", **arguments)
    assert (folder / "ledger.jsonl").read_bytes() == before
    assert not (folder / "again").exists()


@pytest.mark.filterwarnings("ignore:.*1 other open request")
def test_a_dry_run_adds_nothing(folder: Path) -> None:
    before = (folder / "ledger.jsonl").read_bytes()
    chip.edit(folder / "ckpt", ["patient_1"], out=folder / "x", ledger=ledger_in(folder), dry_run=True, **QUICK)
    assert (folder / "ledger.jsonl").read_bytes() == before


def test_an_edit_without_the_ledger_is_added_from_its_receipt(folder: Path) -> None:
    ledger = Ledger(folder / "late.jsonl", KEY, by="tester")
    entry = receive(ledger, "patient_1", folder / "records.jsonl")
    added = record_edit(ledger, [entry.requests[0][:8]], folder / "edited").details
    known = ledger_in(folder).read().chain.entries[-1].details
    assert isinstance(added, Edited)
    assert isinstance(known, Edited)
    assert (added.source, added.result, added.receipt, added.settings) == (
        *(known.source, known.result, known.receipt, known.settings),
    )


def test_a_label_that_names_the_node_is_refused(folder: Path) -> None:
    cases: tuple[dict[str, Any], ...] = ({"label": "Patient 3"}, {"basis": "the letter of patient-3"})
    for given in cases:
        with pytest.raises(InputError, match="names patient_3, which is to be forgotten"):
            receive(ledger_in(folder), "patient_3", folder / "records.jsonl", **given)
    with pytest.raises(InputError, match="is open already"):
        receive(ledger_in(folder), "patient_1", folder / "records.jsonl")


def test_records_that_lack_an_open_request_are_refused(folder: Path) -> None:
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(line for line in lines if '"patient_1"' not in line))
    with pytest.raises(InputError, match=r"hold no node of request [0-9a-f]{12}; give the records that do"):
        open_targets(ledger_in(folder), folder / "ckpt")
    refuse(ledger_in(folder), [FIRST[:12]], "the records are gone")
    assert open_targets(ledger_in(folder), folder / "ckpt") == ["institution_1/patient_2"]


def test_a_swapped_receipt_is_named(folder: Path) -> None:
    receipt = folder / "edited" / "chip_receipt.json"
    good = read_receipt(folder / "edited")
    receipt.write_bytes(receipt.read_bytes().replace(b"shielded", b"chip") + b"\n")
    (fault,) = verify_ledger(ledger_in(folder), edited=[folder / "edited"]).faults
    assert "damaged, or changed by hand" in fault
    write_receipt(folder / "edited", replace(good, seed=7))
    (fault,) = verify_ledger(ledger_in(folder), edited=[folder / "edited"]).faults
    assert "no entry tells of the receipt in it" in fault


def test_the_page_says_what_was_done_and_promises_nothing(folder: Path, evaluation: Evaluation) -> None:
    record_evaluation(folder, evaluation)
    ledger = ledger_in(folder)
    refused = receive(ledger, "patient_4", folder / "records.jsonl", label="<script>alert(1)</script>").requests[0]
    pages = [request_page(dossier_of(ledger, refused))]
    refuse(ledger, [refused], "kept by law")
    pages.append(request_page(dossier_of(ledger, refused)))
    pages.append(request_page(dossier_of(ledger, FIRST[:12], folder / "edited")))
    for page in pages:
        text = page.casefold()
        assert not [word for word in FORBIDDEN if word in text]
        assert not [name for name in (*NAMES, "patient_4") if name.casefold() in text]
        assert "<script" not in text
        assert ledger.read().chain.head in text or page is pages[0]
    page = pages[-1]
    for told in ("case 1", "GDPR Art. 17 &lt;b&gt;", "2026-12-24", "together with 1 other request", FIRST):
        assert told in page
    for told in ("What this does not show", "erased in the sense of the law", "no destruction", "95% intervals"):
        assert told in page
    assert "a model was edited for it and evaluated" in page
    with pytest.raises(InputError, match="its receipt is not the one of this request's last edit"):
        dossier_of(ledger, refused, folder / "edited")


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process: its exit code, and what it printed. The key is in `key`."""
    key = folder / "key"
    key.write_bytes(b"a key of the tests, and of nobody else\n")
    key.chmod(0o600)
    monkeypatch.delenv("CHIP_LEDGER_KEY", raising=False)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["chip", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert "a key of the tests" not in printed.out + printed.err
        return int(ended.value.code or 0), printed.out + printed.err

    return run


def test_edit_and_eval_take_what_is_open(folder: Path, command: Command) -> None:
    ledger = ("--ledger", folder / "ledger.jsonl", "--ledger-key", folder / "key")
    assert command("eval", folder / "edited", *ledger, "--open", "--device", "cpu")[0] == 0
    assert states(folder) == [State.EVALUATED, State.EVALUATED]
    options = ("--method", "chip", "--keep", "none", "--device", "cpu", "--max-left", "1", *UNTRAINED_OPTIONS)
    code, printed = command("edit", folder / "ckpt", *ledger, "--open", "--out", folder / "again", *options, "--json")
    assert (code, '"count": 8' in printed) == (0, True)  # of two patients
    assert states(folder) == [State.EDITED, State.EDITED]
    for arguments in (("--open",), (*ledger, "--open", "--forget", "patient_1"), (*ledger,)):
        for name in ("edit", "eval"):
            assert command(name, folder / "edited", *arguments)[0] == 2


def test_the_commands(folder: Path, command: Command) -> None:
    run = partial(command, "ledger")
    ledger, secret = folder / "ledger.jsonl", ("--key", folder / "key")
    assert run("verify", ledger)[0] == 0
    late = ("--records", folder / "records.jsonl", "--deadline", "2020-02-29", *secret)
    assert run("due", ledger) == (0, run("due", ledger)[1])
    assert run("add", "received", ledger, "--forget", "patient_4", *late)[0] == 0
    code, printed = run("due", ledger, "--json")
    assert (code, json.loads(printed)["open"][0]["deadline"]) == (1, "2020-02-29")
    assert "over" in run("due", ledger)[1]
    fourth = KEY.pseudonym(("institution_2", "patient_4"))
    assert run("add", "refused", ledger, "--request", fourth[:8], "--reason", "law", *secret)[0] == 0
    code, printed = run("show", ledger, "--json", *secret)
    assert [request["state"] for request in json.loads(printed)["requests"]] == ["edited", "edited", "refused"]
    assert json.loads(printed)["head"] in run("show", ledger)[1]
    assert run("show", ledger, "--request", FIRST[:8])[1].count("received") == 1
    assert run("page", ledger, folder / "page.html", "--request", FIRST[:8], *secret) == (0, "")
    edited = folder / "edited"
    assert run("page", ledger, edited / "page.html", "--request", FIRST[:8], "--edited", edited)[0] == 2
    for arguments in (("--deadline", "soon"), ("--on", "2026-13-01")):
        code, printed = run("add", "received", ledger, "--forget", "patient_3", *late, *arguments)
        assert (code, "write it as 2026-12-31" in printed) == (2, True)
    ledger.write_bytes(ledger.read_bytes().replace(b"case 1", b"case 2"))
    for name in ("show", "due", "verify"):
        code, printed = run(name, ledger)
        assert (code, "line 1: entry 1 has been changed" in printed) == (1, True)
