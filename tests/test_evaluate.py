"""`chip.evaluate` from its arguments to its figures, on a small model of random weights."""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import chip
from chip.errors import InputError
from chip.evaluation.attacks.relearning import Relearning
from chip.evaluation.rows import HELD_OUT, Evaluation
from chip.general.collect import QUESTIONS
from chip.model.offload import MaxMemory
from chip.report.text.eval import print_evaluation
from chip.report.verdict import verdict
from tests.families import build, write_records

TARGET = "patient_1"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_records(folder)
    return build(folder / "ckpt", "llava", dtype=torch.float32)


@pytest.fixture(scope="module")
def usual(checkpoint: Path) -> Evaluation:
    return chip.evaluate(checkpoint, [TARGET], device="cpu", attacks="reconstruction")


def _values(evaluation: Evaluation) -> dict[tuple[str, str, str, str], float]:
    return {(row.group, row.split, row.measure, row.attack): row.value for row in evaluation.rows}


def test_a_spread_model_gives_the_same_figures(
    checkpoint: Path, usual: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    memory: MaxMemory = {"cpu": "400KB"}  # the rest stays on the disk
    spread = chip.evaluate(checkpoint, [TARGET], device_map="auto", max_memory=memory, attacks=["reconstruction"])
    assert spread.attacks == usual.attacks
    assert _values(spread) == pytest.approx(_values(usual), abs=1e-5, nan_ok=True)
    assert list(tmp_path.iterdir()) == []  # nothing of the model is left there


def test_attacks_may_have_settings_of_their_own(checkpoint: Path) -> None:
    evaluation = chip.evaluate(checkpoint, [TARGET], device="cpu", attacks=[Relearning((1, 2))], batch_size=3)
    assert evaluation.attacks == ("relearning",)
    assert {row.attack for row in evaluation.rows} == {"none", "relearning: 1 steps", "relearning: 2 steps"}


def test_general_ability_is_said_to_be_missing_once(usual: Evaluation) -> None:
    assert list(usual.skipped) == ["general"]
    assert "frequencies alone" in usual.skipped["general"]
    assert "or has lost it: --original would show that" in usual.skipped["general"]
    assert not [row for row in usual.rows if row.split == HELD_OUT]
    assert not verdict(usual).attacks.skipped


def test_general_ability_is_measured_on_a_text_of_the_users(checkpoint: Path, tmp_path: Path) -> None:
    """Of one model as all three: nothing is lost."""
    text = tmp_path / "general.txt"
    text.write_text("\n\n".join(f"The lighthouse keeper counted {n} ships that evening." * 20 for n in range(3)))
    result = chip.evaluate(
        checkpoint, [TARGET], original=checkpoint, reference=checkpoint, general=[text], device="cpu", batch_size=8
    )
    assert result.skipped == {}
    figures = {row.measure: row for row in result.rows if row.split == HELD_OUT}
    assert {row.group for row in figures.values()} == {"general"}
    assert figures["nats"].low < figures["nats"].value < figures["nats"].high
    assert figures["nats"].value == figures["nats_before"].value
    assert figures["kl_to_before"].value == figures["nats_above_before"].value == 0
    assert (figures["same_answers"].value, figures["same_answers"].count) == (1, QUESTIONS)
    assert figures["nats"].count == figures["kl_to_before"].count > 500
    assert [row for row in result.reference or () if row.split == HELD_OUT] == list(figures.values())
    shown = io.StringIO()
    print_evaluation(result, Console(file=shown, width=120))
    assert re.search(r"KL to before, nats a token +[\d,]+ tokens +0\.000 \[0\.000, 0\.000\] +0\.000", shown.getvalue())


def test_errors_name_their_argument(checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"^attacks='theft': not known; there are reconstruction, ") as caught:
        chip.evaluate(checkpoint, [TARGET], attacks=["theft"])
    assert (caught.value.argument, caught.value.value) == ("attacks", "theft")
    with pytest.raises(InputError, match=r"^general='none': stands alone"):
        chip.evaluate(checkpoint, [TARGET], general=["none", "auto"])
    with pytest.raises(InputError, match=r"^general='.*none\.txt': No such file"):
        chip.evaluate(checkpoint, [TARGET], general=[checkpoint / "none.txt"])
    with pytest.raises(InputError, match=r"^forget='patient_7': no node is called so; did you mean "):
        chip.evaluate(checkpoint, ["patient_7"])
    with pytest.raises(InputError, match=r"^max_memory=\{'cpu': '1GB'\}: .* give a device_map"):
        chip.evaluate(checkpoint, [TARGET], max_memory={"cpu": "1GB"})


def test_the_model_before_the_edit_is_for_what_needs_it(checkpoint: Path) -> None:
    options: dict[str, Any] = {"original": checkpoint, "general": ["none"], "device": "cpu"}
    with pytest.raises(InputError, match=r"^original=.*: no attack that is run needs it; run one of steering, "):
        chip.evaluate(checkpoint, [TARGET], attacks="membership", **options)
    result = chip.evaluate(checkpoint, [TARGET], attacks="depth,trace", **options)
    assert result.skipped == {"trace": "needs a model retrained without the target (--reference)"}
    lost = {row.attack: row.value for row in result.rows if row.measure == "lost_log_probability"}
    assert len(lost) > 1
    assert list(lost.values()) == pytest.approx([0] * len(lost), abs=1e-4)
