"""What comes from a user's files or options is shown as it stands: in the terminal, on its bars, and on a page."""

import html
import io
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from chip.checkpoint.diff import CheckpointDiff, ShapeDiff
from chip.checkpoint.tensor_diff import TensorDiff
from chip.checkpoint.verify import Verification
from chip.cli import console as consoles
from chip.cli.progress import progress_bar
from chip.data.hierarchy import Hierarchy
from chip.data.record import Record
from chip.evaluation.rows import NO_ATTACK, WORST, Evaluation, ResultRow
from chip.inspection import Inspection, TargetModuleRow
from chip.methods.trial import Choice
from chip.model.target_modules import Component
from chip.report.edit_report import EditReport
from chip.report.html.diff import diff_page
from chip.report.html.eval import eval_page
from chip.report.outcome import Outcome
from chip.report.text.diff import print_diff
from chip.report.text.edit import print_edit
from chip.report.text.eval import print_evaluation
from chip.report.text.inspect import print_inspection
from chip.report.text.tree import print_demo, print_tree
from chip.report.text.verify import print_verification

EVIL = "[red]a[/red] [/] [bold :smile: \x1b[31m\x9b2J\x07\u202e<b>&amp;"
SHOWN = "[red]a[/red] [/] [bold :smile: \\x1b[31m\\x9b2J\\x07\\u202e<b>&amp;"
CONTROLS = {"\x1b", "\x9b", "\x07", "\u202e"}
CHANGED = TensorDiff(EVIL, (), f"{EVIL} -> F32", True, math.inf, 1.0, None, 1.0, name_in_b=EVIL)
IN_LAYERS = TensorDiff(f"{EVIL}.layers.0.{EVIL}.weight", (2, 2), "F32", True, 0.5, 1.0, None, 1.0)

OUTCOME = Outcome(1.0, 0.1, "9 trained questions", 0.1, 0.2, {}, {}, {}, {}, {}, None)


def console() -> Console:
    return Console(file=io.StringIO(), width=1000, force_terminal=True, color_system=None, highlight=False)


def printed(where: Console) -> str:
    return cast(io.StringIO, where.file).getvalue()


def record(path: tuple[str, ...]) -> Record:
    return Record(path=path, question="q", answer="a", image=None)


def difference() -> CheckpointDiff:
    return CheckpointDiff((CHANGED, IN_LAYERS), (ShapeDiff(EVIL, (1,), (2,)),), (EVIL,), (EVIL,))


def test_ids_labels_and_folders_are_shown_as_they_stand() -> None:
    choice = Choice("ridge", 1.0, 0.02, {}, 0.1, (), "weakest", EVIL)
    edit = EditReport(EVIL, {"a": EVIL}, None, EVIL, 1.0, True, {EVIL: 0.1}, {EVIL: 0.1}, {}, OUTCOME, choice)
    receipt: Any = SimpleNamespace(method=EVIL, created=EVIL, chip=EVIL, label=EVIL, files={}, tensors={}, base=None)
    area = ResultRow("target", WORST, f"auc_{EVIL}", EVIL, 0.5, 0.4, 0.6, 9)
    module = TargetModuleRow(EVIL, Component.TEXT, "0", 1, ((1, 1),), (EVIL,))
    shown: list[tuple[int, Callable[[Console], None]]] = [
        (5, partial(print_edit, edit)),
        (4, partial(print_verification, Verification(receipt, False, ()))),
        (5, partial(print_verification, Verification(receipt, False, (EVIL,)))),
        (2, partial(print_evaluation, Evaluation((area,), None, (EVIL,), 0))),
        (5, partial(print_inspection, Inspection(EVIL, EVIL, 1, (EVIL,), 1, (module,)))),
        (2, partial(print_tree, Hierarchy([record((EVIL, EVIL))]), 4)),
        (2, partial(print_demo, Path(EVIL))),
    ]
    for times, report in shown:
        where = console()
        report(where)
        assert printed(where).replace("auc [", "auc_[").count(SHOWN) == times, report
        assert not CONTROLS & {*re.sub(r"\x1b\[[0-9;]*m", "", printed(where))}


def test_names_of_tensors_are_shown_as_they_stand() -> None:
    where = console()
    print_diff(difference(), where)
    text = printed(where)
    for line in (f"in B: {SHOWN}", f"{SHOWN} -> F32", f"only in A: {SHOWN}", f"only in B: {SHOWN}", f" {SHOWN} "):
        assert line in text
    assert f"other shape: {SHOWN}  1 in A, 2 in B" in text
    assert f"{SHOWN}.layers" in text
    assert not CONTROLS & {*re.sub(r"\x1b\[[0-9;]*m", "", text)}


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_bar_shows_a_name_as_it_stands(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    where = Console(file=io.StringIO(), width=1000, force_terminal=is_terminal, color_system=None, highlight=False)
    monkeypatch.setattr(consoles, "err", where)
    with progress_bar(f"hashing {EVIL}", 2) as advance:
        advance(2)
    assert f"hashing {SHOWN}" in printed(where)


def test_a_page_shows_names_as_they_stand() -> None:
    receipt = {"label": EVIL, "settings": {EVIL: EVIL}, "files": {f"{EVIL}.safetensors": {"sha256": EVIL}}}
    evaluation = Evaluation((ResultRow("target", "trained", EVIL, NO_ATTACK, 1, 0, 2, 4),), None, (EVIL,), 0)
    name = EVIL.replace("/", "")
    for page in (
        diff_page(difference(), name, name, receipt),
        eval_page(evaluation, name, forget=[EVIL], show_names=True),
    ):
        assert SHOWN in html.unescape(page).replace("<wbr>", "")
        assert "<b>&" not in page
        assert not CONTROLS & {*page}
