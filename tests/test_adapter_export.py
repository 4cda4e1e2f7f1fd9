"""Adapters out: what plain PEFT loads onto the base is the edited model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chip.checkpoint.adapter import hub_name
from chip.checkpoint.layout import ADAPTER_CONFIG, Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.errors import ChipWarning, InputError
from chip.model.adapter_export import export_adapter
from chip.model.adapters import open_checkpoint
from chip.model.loading import VLM, load_vlm
from chip.model.restoring import holding
from chip.saving import SaveAdapter, resolve_saving
from tests.adapters import KINDS, make_adapter, peft_of

DOWN = "model.language_model.layers.{}.mlp.down_proj.weight"
ON_DISK = "language_model.model.layers.{}.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def base(hospital: Path) -> VLM:
    """The base in fp32. Nobody changes it for good."""
    return load_vlm(hospital / "ckpt", "cpu")


def logits_of(model: Any, vlm: VLM, hierarchy: Hierarchy) -> Tensor:
    """What the model answers to a few records."""
    batch = next(iter(vlm.batches(hierarchy.records[:6])))
    with torch.no_grad():
        logits: Tensor = model(**batch.inputs).logits
    return logits


def low_rank_change(value: Tensor, rank: int) -> Tensor:
    torch.manual_seed(rank)
    change = torch.randn(value.shape[0], rank) @ torch.randn(rank, value.shape[1])
    return value + 0.3 * change * value.norm() / change.norm()


def test_plain_peft_loads_the_edit_at_its_rank(base: VLM, hospital: Path, hierarchy: Hierarchy, tmp_path: Path) -> None:
    values = {DOWN.format(layer): low_rank_change(base.parameter(DOWN.format(layer)), 2 + layer) for layer in range(2)}
    bias = "model.multi_modal_projector.linear_2.bias"
    values[bias] = base.parameter(bias) + 0.1
    on_disk = {ON_DISK.format(layer): values[DOWN.format(layer)] for layer in range(2)}
    on_disk["multi_modal_projector.linear_2.bias"] = values[bias]
    with pytest.warns(ChipWarning, match="1 module of which more than a weight changes: in the adapter as a whole"):
        export_adapter(Checkpoint.open(hospital / "ckpt"), tmp_path / "out", on_disk)
    config = json.loads((tmp_path / "out" / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["rank_pattern"]) == (3, {DOWN.format(0).removesuffix(".weight"): 2})
    assert config["modules_to_save"] == ["model.multi_modal_projector.linear_2"]
    assert config["base_model_name_or_path"] is None
    unedited = logits_of(base.model, base, hierarchy)
    with holding(base, values):
        expected = logits_of(base.model, base, hierarchy)
    actual = logits_of(peft_of(base.model, tmp_path / "out"), base, hierarchy)
    assert (actual - expected).norm() <= 1e-5 * expected.norm() < 1e-2 * (unedited - expected).norm()
    merged = open_checkpoint(hospital / "ckpt", tmp_path / "out", rounded=False).merged
    assert set(merged) == {*on_disk, "multi_modal_projector.linear_2.weight"}
    for name, value in on_disk.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=1e-6)


def test_a_new_adapter_holds_the_old_one_and_the_edit(base: VLM, hospital: Path, tmp_path: Path) -> None:
    old = make_adapter(base.model, tmp_path / "old", KINDS["lora"])
    source = open_checkpoint(hospital / "ckpt", old, rounded=False)
    name = ON_DISK.format(1)
    edited = low_rank_change(source.read(name), 3)
    export_adapter(source, tmp_path / "new", {name: edited})
    config = json.loads((tmp_path / "new" / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["rank_pattern"].keys()) == (7, {*config["target_modules"]} - {DOWN.format(1)[:-7]})
    assert set(config["rank_pattern"].values()) == {4}
    both = open_checkpoint(hospital / "ckpt", tmp_path / "new", rounded=False)
    assert set(both.merged) == set(source.merged)
    for each in source.merged:
        expected = edited if each == name else source.merged[each]
        torch.testing.assert_close(both.merged[each], expected, rtol=1e-6, atol=1e-6)


def test_a_base_is_named_only_as_the_hub_does(tmp_path: Path) -> None:
    assert hub_name(tmp_path / "models--org--name" / "snapshots" / "0f1e") == "org/name"
    assert hub_name(tmp_path / "patient_17") is None
    assert hub_name(Path("/")) is None


def test_it_is_said_that_an_adapter_is_no_release() -> None:
    with pytest.warns(ChipWarning, match="can be taken off again, so this is not for a release"):
        assert isinstance(resolve_saving("adapter", False), SaveAdapter)
    for arguments, message in (
        (("lora", False), "there is merged and adapter"),
        (("adapter", True), "holds no shards"),
    ):
        with pytest.raises(InputError, match=message):
            resolve_saving(*arguments)
