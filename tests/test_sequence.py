"""Edits of edited checkpoints are counted and chained, and they cannot have gone farther than is said."""

from __future__ import annotations

import hashlib
import math
import shutil
from dataclasses import astuple, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.receipt import RECEIPT, Receipt, read_receipt, write_receipt
from chip.checkpoint.sequence import Drift, EditSequence, Spent, next_drift
from chip.checkpoint.verify import verify
from chip.errors import ChipWarning, InputError
from chip.progress import silent
from chip.report.documents import count_edits, warn_of_sequence
from chip.report.spent import spent_before
from tests.test_adapter_export import report_of
from tests.test_receipt import edit_folder

EDITS = ({"a": 0.5, "c": 0.1}, {"a": -0.4}, {"a": 0.2, "b": 1.0})
"""What each edit adds to each value of a tensor."""


@pytest.fixture
def edits(source: Checkpoint, tmp_path: Path) -> list[Path]:
    """The original, and behind each edit what it has written."""
    folders = [source.folder]
    for number, changes in enumerate(EDITS):
        last = Checkpoint.open(folders[-1])
        new = {name: last.read(name).float() + change for name, change in changes.items()}
        edit_folder(last, tmp_path / f"{number}", new, label=None)
        folders.append(tmp_path / f"{number}")
    return folders


def sequence_of(folder: Path) -> EditSequence:
    sequence = read_receipt(folder).sequence
    assert sequence is not None
    return sequence


def test_edits_are_counted_and_chained(edits: list[Path]) -> None:
    for number, folder in enumerate(edits[1:], 1):
        assert sequence_of(folder).number == number
        digests = [read_receipt(earlier).result_digest for earlier in edits[1:number]]
        assert sequence_of(folder).chain == [read_receipt(edits[1]).source_digest, *digests]
    for before, after in pairwise(edits):
        assert verify(after, before).faults == ()


def test_the_digest_is_what_sha256sum_says(edits: list[Path]) -> None:
    files = sorted(edits[1].glob("*.safetensors"))
    listed = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    assert read_receipt(edits[1]).result_digest == hashlib.sha256(listed.encode()).hexdigest()


def test_the_bound_is_the_sum_of_the_changes_and_no_less_than_the_distance(edits: list[Path]) -> None:
    original, last, drift = Checkpoint.open(edits[0]), Checkpoint.open(edits[-1]), sequence_of(edits[-1]).drift
    assert drift is not None
    assert set(drift) == {"a", "b", "c"}
    steps = [Checkpoint.open(folder) for folder in edits]
    for name, each in drift.items():
        zero = original.read(name).double()
        assert each.norm == pytest.approx(float(zero.norm()), rel=1e-12)
        changes = [
            float((after.read(name).double() - before.read(name).double()).norm()) for before, after in pairwise(steps)
        ]
        assert each.bound == pytest.approx(sum(changes), rel=1e-6)  # the ratio was taken in fp64, and kept
        assert each.bound >= float((last.read(name).double() - zero).norm()) * (1 - 1e-6)
    total = math.sqrt(sum(each.bound**2 for each in drift.values()) / sum(each.norm**2 for each in drift.values()))
    assert sequence_of(edits[-1]).total == pytest.approx(total, rel=1e-12)
    assert sequence_of(edits[-1]).worst == max(
        ((name, each.bound / each.norm) for name, each in drift.items()), key=lambda share: share[1]
    )


def test_weights_that_the_receipt_is_not_of_begin_a_sequence_of_their_own(edits: list[Path], tmp_path: Path) -> None:
    """As where the edited model was trained on, and its receipt stayed."""
    trained = tmp_path / "trained"
    shutil.copytree(edits[2], trained)
    stale = (trained / RECEIPT).read_bytes()
    (trained / RECEIPT).unlink()
    edit_folder(Checkpoint.open(trained), tmp_path / "more", {"c": torch.zeros(3, 4)}, label=None)
    shutil.copytree(tmp_path / "more", tmp_path / "stale")
    (tmp_path / "stale" / RECEIPT).write_bytes(stale)
    edit_folder(Checkpoint.open(tmp_path / "stale"), tmp_path / "next", {"a": torch.zeros(6, 5)}, label=None)
    sequence, receipt = sequence_of(tmp_path / "next"), read_receipt(tmp_path / "next")
    assert (sequence.number, sequence.chain) == (1, [receipt.source_digest])
    assert receipt.previous is not None
    assert receipt.earlier is None
    with pytest.warns(
        ChipWarning, match="a receipt of other weights than its own, so that edits are counted from here"
    ):
        warn_of_sequence(receipt.sequence, other_weights=True)
    assert verify(tmp_path / "next", tmp_path / "stale").faults == ()


def test_what_adds_up_to_much_is_said(edits: list[Path], tmp_path: Path) -> None:
    warn_of_sequence(sequence_of(edits[-1]), other_weights=False)  # nothing to say
    edit_folder(Checkpoint.open(edits[-1]), tmp_path / "far", {"a": torch.full((6, 5), 20.0)}, label=None)
    with pytest.warns(ChipWarning, match=r"add up to \d+\.\d times the norm of the changed weights, more than 8"):
        warn_of_sequence(sequence_of(tmp_path / "far"), other_weights=False)


def test_a_dry_run_has_the_place_that_the_edit_would_have(edits: list[Path]) -> None:
    written, source = read_receipt(edits[2]), Checkpoint.open(edits[1])
    report = report_of({name: tensor.relative_change for name, tensor in written.tensors.items()})
    assert count_edits(source, report, True, silent).sequence == written.sequence
    as_adapter = count_edits(source, report, False, silent).sequence
    assert as_adapter == EditSequence(2, written.chain, {}, None)


def test_a_way_back_adds_up_too() -> None:
    drift = next_drift({}, {"w": 0.5}, {"w": 4.0})
    assert drift == {"w": Drift(2.0, 4.0)}
    assert next_drift(drift, {"w": 1.0, "v": 0.1}, {"w": 2.0, "v": 10.0}) == {
        "w": Drift(4.0, 4.0),
        "v": Drift(1.0, 10.0),
    }
    assert next_drift(drift, {"w": 0.1, "zero": 1.0}, {"w": 2.0, "zero": 0.0}) is None  # no share says how far
    assert EditSequence(1, [""], {}, {}).total is None
    assert EditSequence(1, [""], {}, {}).worst is None


def figures(*groups: tuple[str, int, float, float]) -> dict[str, object]:
    """Of an edit: group, trained questions, and their mean answer probability before and after."""
    trained = {
        group: {"trained": {"count": count, "answer_probability": {"before": before, "after": after}}}
        for group, count, before, after in groups
    }
    target = {"trained": {"count": 9, "answer_probability": {"before": 1.0, "after": 0.0}}}
    return {"groups": {"target": target, **trained}}


def test_what_the_edits_before_have_cost_is_in_their_receipts(source: Checkpoint, tmp_path: Path) -> None:
    assert spent_before(source) == Spent(0, 0.0)
    costs: tuple[tuple[dict[str, Any], float], ...] = (
        (figures(("siblings", 10, 0.9, 0.8), ("other", 30, 0.9, 0.9)), 0.025),
        (figures(("other", 40, 0.9, 0.89)), 0.035),
        (figures(("other", 40, 0.8, 0.9)), 0.0),  # more is back than was lost
        ({}, 0.0),
    )
    last = source
    for number, (of_edit, lost) in enumerate(costs, 1):
        folder = tmp_path / f"{number}"
        receipt = edit_folder(last, folder, {"a": torch.full((6, 5), float(number))}, label=None)
        write_receipt(folder, replace(receipt, figures=of_edit))
        last = Checkpoint.open(folder)
        assert astuple(spent_before(last)) == (number, pytest.approx(lost))
    write_receipt(last.folder, replace(read_receipt(last.folder), figures={"groups": {"other": {"trained": 1}}}))
    with pytest.raises(InputError, match="the figures in it are not as an edit writes them"):
        spent_before(last)


def test_a_receipt_is_a_statement_of_in_toto(edits: list[Path]) -> None:
    """As the library of in-toto reads it."""
    from google.protobuf import json_format
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    message = json_format.Parse((edits[1] / RECEIPT).read_bytes(), Message())
    Statement.copy_from_pb(message).validate()
    receipt: Receipt = read_receipt(edits[1])
    assert {each.name: each.digest["sha256"] for each in message.subject} == {
        name: file.sha256 for name, file in receipt.files.items()
    }


def test_biases_that_gates_need_are_no_distance() -> None:
    drift = {"w.weight": Drift(1.0, 2.0), "w.bias": Drift(9.0, 0.1)}
    sequence = EditSequence(1, [], {}, drift)
    assert (sequence.total, sequence.worst) == (0.5, ("w.weight", 0.5))
