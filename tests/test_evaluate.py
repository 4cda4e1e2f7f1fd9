"""`chip.evaluate` from its arguments to its figures, on a small model of random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

import chip
from chip.errors import InputError
from chip.evaluation.attacks.relearning import Relearning
from chip.evaluation.rows import Evaluation
from chip.model.offload import MaxMemory
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


def test_errors_name_their_argument(checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"^attacks='theft': not known; there are reconstruction, ") as caught:
        chip.evaluate(checkpoint, [TARGET], attacks=["theft"])
    assert (caught.value.argument, caught.value.value) == ("attacks", "theft")
    with pytest.raises(InputError, match=r"^forget='patient_7': no node is called so; did you mean "):
        chip.evaluate(checkpoint, ["patient_7"])
    with pytest.raises(InputError, match=r"^max_memory=\{'cpu': '1GB'\}: .* give a device_map"):
        chip.evaluate(checkpoint, [TARGET], max_memory={"cpu": "1GB"})


def test_the_model_before_the_edit_is_for_attacks_that_need_it(checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"^original=.*: no attack that is run needs it; run one of steering, "):
        chip.evaluate(checkpoint, [TARGET], original=checkpoint, attacks="membership", device="cpu")
    result = chip.evaluate(checkpoint, [TARGET], original=checkpoint, attacks="depth,trace", device="cpu")
    assert result.skipped == {"trace": "needs a model retrained without the target (--reference)"}
    lost = {row.attack: row.value for row in result.rows if row.measure == "lost_log_probability"}
    assert len(lost) > 1
    assert list(lost.values()) == pytest.approx([0] * len(lost), abs=1e-4)
