"""Every type that `AutoModelForImageTextToText` loads is edited right, or refused in one true line."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from safetensors.torch import save_file

import chip
from chip.data.readers import read_records
from chip.errors import InputError
from chip.methods.apply import default_modules
from chip.model.families import ORIGINAL_LAYOUTS
from chip.model.forward.self_check import check_pass
from chip.model.loading import load_vlm
from chip.model.stages import in_data_order
from tests.all_types import (
    NAMES,
    NEEDS,
    OWN,
    PAGE,
    README,
    RIGHT,
    outcome,
    recorded,
    recorded_version,
    section,
    summary,
    table,
)
from tests.families import GIVEN, build, known, load_processor_of, write_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("types")
    write_records(folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_it_is_edited_right_or_refused_in_one_line(name: str, folder: Path) -> None:
    if name in OWN and not known(OWN[name]):
        pytest.skip("it needs a newer transformers")
    if (package := NEEDS.get(name)) and find_spec(package) is None:
        pytest.skip(f"transformers needs {package} for it")
    found = outcome(name, folder)
    assert "\n" not in found
    if transformers.__version__ == recorded_version():
        assert found == recorded()[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mllama", "lfm2_vl", "ovis2", "llava_phi"])
def test_the_pass_in_stages_is_the_models_own(name: str, folder: Path) -> None:
    """Looked at from the side, padded one behind the other, a table that is multiplied with, other names."""
    if not known(OWN[name]):
        pytest.skip("it needs a newer transformers")
    source = build(folder / f"{name}-quick", OWN[name])
    with mock.patch("chip.model.processors.load_processor", lambda path: load_processor_of(OWN[name], path)):
        vlm = load_vlm(source, "cpu")
    stages = in_data_order(default_modules(vlm, GIVEN["shielded"]))
    check_pass(vlm, read_records(folder / "records.jsonl"), [0, 1], stages, needs_outputs=False)


def test_the_table_is_what_was_found() -> None:
    assert set(recorded()) == set(NAMES) or transformers.__version__ != recorded_version()
    assert section(README.read_text(encoding="utf-8")) == summary(recorded())
    assert section(PAGE.read_text(encoding="utf-8")) == table(recorded())
    assert sum(words == RIGHT for words in recorded().values()) >= 50


@pytest.mark.parametrize("name", ORIGINAL_LAYOUTS)
def test_weights_in_their_authors_layout_are_refused_with_the_way_to_convert_them(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "any", "architectures": [name]}))
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    family, _ = ORIGINAL_LAYOUTS[name]
    with pytest.raises(InputError, match=rf"{name} is the original layout of .*convert_{family}_weights_to_hf\.py"):
        chip.inspect(tmp_path)
