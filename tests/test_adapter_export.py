"""Adapters out: what plain PEFT loads onto the base is the edited model."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import chip
from chip.checkpoint.adapter import ADAPTER_WEIGHTS
from chip.checkpoint.bom import bom
from chip.checkpoint.layout import ADAPTER_CONFIG, CONFIG, Checkpoint
from chip.checkpoint.model_card import CARD
from chip.checkpoint.overwrite import check_replaceable
from chip.checkpoint.paths import hub_name
from chip.checkpoint.receipt import RECEIPT, read_receipt
from chip.checkpoint.sequence import EditSequence
from chip.checkpoint.signing import Signer, SigningKey
from chip.checkpoint.statement import read_statement
from chip.checkpoint.verify import verify
from chip.checkpoint.weights import combined_digest, weights_digest
from chip.data.hierarchy import Hierarchy
from chip.edit_options import EditOptions
from chip.errors import ChipWarning, InputError
from chip.evaluation.rows import Evaluation
from chip.methods import Chip, Shielded
from chip.methods.patch import Patch
from chip.model.adapter_export import export_adapter
from chip.model.adapters import open_checkpoint
from chip.model.loading import VLM, load_vlm
from chip.model.restoring import holding
from chip.progress import silent
from chip.recording.weights import edited_as_receipt_says, result_digest
from chip.report.attestation import PendingStatement
from chip.report.edit_report import EditReport
from chip.report.outcome import Outcome
from chip.saving import SaveAdapter, SaveMerged, resolve_saving
from tests.adapters import KINDS, make_adapter, peft_of
from tests.folders import write_part
from tests.signing_keys import Keys

DOWN = "model.language_model.layers.{}.mlp.down_proj.weight"
ON_DISK = "language_model.model.layers.{}.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def base(hospital: Path) -> VLM:
    """The base in fp32. Nobody changes it for good."""
    return load_vlm(hospital / "ckpt", "cpu")


def logits_of(model: Any, vlm: VLM, hierarchy: Hierarchy) -> Tensor:
    """What the model answers to a few records."""
    batch = next(vlm.batches(hierarchy.records[:6]).made())
    with torch.no_grad():
        logits: Tensor = model(**batch.inputs).logits
    return logits


def low_rank_change(value: Tensor, rank: int) -> Tensor:
    torch.manual_seed(rank)
    change = torch.randn(value.shape[0], rank) @ torch.randn(rank, value.shape[1])
    changed: Tensor = value + 0.3 * change * value.norm() / change.norm()
    return changed


def test_plain_peft_loads_the_edit_at_its_rank(base: VLM, hospital: Path, hierarchy: Hierarchy, tmp_path: Path) -> None:
    values = {DOWN.format(layer): low_rank_change(base.parameter(DOWN.format(layer)), 2 + layer) for layer in range(2)}
    bias = "model.multi_modal_projector.linear_2.bias"
    values[bias] = base.parameter(bias) + 0.1
    on_disk = {ON_DISK.format(layer): values[DOWN.format(layer)] for layer in range(2)}
    on_disk["multi_modal_projector.linear_2.bias"] = values[bias]
    with pytest.warns(ChipWarning, match="more than a linear layer's weight changes in 1 module"):
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
        assert isinstance(resolve_saving({"save": "adapter"}), SaveAdapter)
    wrong: tuple[tuple[EditOptions, str], ...] = (
        ({"save": "lora"}, "there is merged and adapter"),
        ({"save": "adapter", "link_unchanged": True}, "holds no shards"),
    )
    for options, message in wrong:
        with pytest.raises(InputError, match=message):
            resolve_saving(options)


def report_of(changes: dict[str, float]) -> EditReport:
    outcome = Outcome(1.0, 0.1, "38 trained questions", 0.1, 0.2, {}, {}, {}, {}, {}, None)
    return EditReport("shielded", {"rank": 3}, "request 7", "out", 1.0, True, changes, {}, {}, outcome)


@pytest.fixture
def signed(hospital: Path, tmp_path: Path) -> Path:
    """What `chip edit --save adapter` leaves, less the model."""
    source, name, saving = Checkpoint.open(hospital / "ckpt"), ON_DISK.format(1), SaveAdapter()
    patch = Patch({name: low_rank_change(source.read(name).float(), 3)}, {name: 0.3})
    saving.write(source, tmp_path / "out", patch, False, silent)
    saving.document(source, tmp_path / "out", report_of(patch.relative_change), silent)
    return tmp_path / "out"


def test_a_signed_adapter_is_as_its_receipt_says(signed: Path, hospital: Path, tmp_path: Path) -> None:
    receipt = read_receipt(signed)
    assert (receipt.label, receipt.tensors, receipt.adapter) == ("request 7", {}, None)
    assert receipt.base is not None
    original = weights_digest(Checkpoint.open(hospital / "ckpt"))
    assert receipt.sequence == EditSequence(1, [original], {}, None)  # how far it goes is not in the receipt
    weights = hashlib.sha256((signed / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    assert (receipt.source_digest, receipt.result_digest) == (original, combined_digest({ADAPTER_WEIGHTS: weights}))
    assert receipt.base.keys() == {CONFIG, *Checkpoint.open(hospital / "ckpt").shards}
    assert receipt.files.keys() == {path.name for path in signed.iterdir()} - {RECEIPT}
    card = (signed / CARD).read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "---\n# An edit of a checkpoint, as an adapter to it\n" in card
    assert "1 tensors have changed, by this adapter to it. It can be taken off again" in card
    assert not verify(signed).faults
    assert not verify(signed, hospital / "ckpt").faults
    assert edited_as_receipt_says(signed, None).source == original
    assert result_digest(open_checkpoint(hospital / "ckpt", signed)) == receipt.result_digest  # as an evaluation has it
    for file in signed.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_an_adapter_is_signed_and_has_a_bill_of_materials(signed: Path, hospital: Path, keys: Keys) -> None:
    Signer(SigningKey(str(keys["ours"][0]))).sign(signed)
    assert not verify(signed, hospital / "ckpt", public_key=keys["ours"][1]).faults
    check_replaceable(signed)
    made = json.loads(bom(signed))["metadata"]["component"]
    (ancestor,) = made["pedigree"]["ancestors"]
    assert (made["name"], ancestor["name"]) == ("LoRA adapter", "model")
    assert ancestor["version"] == read_receipt(signed).source_digest[:12]
    assert read_receipt(signed).arguments == {}
    with pytest.raises(InputError, match="asks for what no edit was asked"):
        chip.reproduce(signed, hospital / "ckpt", ["patient_17"])


def test_a_statement_of_an_adapter_tells_of_its_base(signed: Path, hospital: Path, tmp_path: Path) -> None:
    base = hospital / "ckpt"
    pending = PendingStatement.of(tmp_path / "statement.json", signed, base=base)
    assert pending.base == weights_digest(Checkpoint.open(base))
    assert PendingStatement.of(tmp_path / "statement.json", base).base is None
    pending.write(Evaluation((), None, (), 0, (), {}))
    assert read_statement(pending.file).predicate["base"] == pending.base
    assert not verify(signed, evaluation=pending.file).faults


def test_a_changed_adapter_or_another_base_is_found(signed: Path, hospital: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(hospital / "ckpt", tmp_path / "other"))
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    assert verify(signed, other).faults == ("config.json: the original's is not the one that the adapter was made to",)
    weights = bytearray((signed / ADAPTER_WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (signed / ADAPTER_WEIGHTS).write_bytes(weights)
    (signed / "more.txt").touch()
    assert verify(signed).faults == (
        f"{ADAPTER_WEIGHTS}: has another hash than the receipt's",
        "more.txt: not in the receipt",
    )


def test_the_receipt_of_a_merged_adapter_is_held_against_its_base(base: VLM, hospital: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base.model, tmp_path / "adapter", KINDS["modules_to_save"])
    settings = json.loads((hospital / "ckpt" / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 77}))
    source, name, saving, out = (
        open_checkpoint(hospital / "ckpt", adapter),
        ON_DISK.format(1),
        SaveMerged(),
        tmp_path / "out",
    )
    patch = Patch({name: low_rank_change(source.read(name).float(), 3)}, {name: 0.3})
    saving.write(source, out, patch, False, silent)
    saving.document(source, out, report_of(patch.relative_change), silent)
    receipt = read_receipt(out)
    assert receipt.adapter is not None
    assert receipt.sequence is not None
    assert receipt.sequence.chain == [weights_digest(Checkpoint.open(hospital / "ckpt"))]
    assert receipt.sequence.norms.keys() == receipt.tensors.keys()
    assert receipt.adapter.keys() == {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "tokenizer_config.json"}
    assert receipt.adapter[ADAPTER_WEIGHTS] == hashlib.sha256((adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    assert receipt.tensors.keys() == {tensor.name for tensor in chip.diff(hospital / "ckpt", out).changed}
    assert receipt.tensors.keys() <= set(source.merged)
    assert not verify(out, hospital / "ckpt").faults
    ancestors = json.loads(bom(out))["metadata"]["component"]["pedigree"]["ancestors"]
    assert sorted(each["name"] for each in ancestors) == ["LlavaForConditionalGeneration", "LoRA adapter"]
    with pytest.raises(InputError, match="the edit merged an adapter first; give its folder"):
        chip.reproduce(out, hospital / "ckpt", ["patient_17"])
    (adapter / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="not the one that was merged before the edit"):
        chip.reproduce(out, hospital / "ckpt", ["patient_17"], adapter=adapter)
    assert f"{len(receipt.tensors)} tensors have changed, by the adapter that was merged" in (out / CARD).read_text()
    (out / "tokenizer_config.json").write_text("{}")
    assert verify(out, hospital / "ckpt").faults


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 8])
def test_an_edit_is_saved_as_an_adapter(
    rank: int | None, base: VLM, hospital: Path, hierarchy: Hierarchy, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "records": write_part(hospital, range(5, 7), tmp_path / "part"),
        "method": Shielded(retain_weight=8.0),
        "keep": ["none"],
        "device": "cpu",
        "accept": True,
        "batch_size": 16,
        "rank": rank,
    }
    with pytest.warns(ChipWarning, match="not for a release"):
        report = chip.edit(
            hospital / "ckpt", ["patient_17"], out=tmp_path / "adapter", save="adapter", overwrite=True, **options
        )
    merged = chip.edit(hospital / "ckpt", ["patient_17"], out=tmp_path / "merged", **options)
    for group, results in merged.groups.items():
        for split, result in results.items():
            after = report.groups[group][split].exact_match.after
            assert after == pytest.approx(result.exact_match.after, abs=0.02)  # the base is stored in bf16
    assert report.settings == merged.settings
    assert not verify(tmp_path / "adapter", hospital / "ckpt").faults
    config = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text())
    assert config["r"] == (rank or 128)
    source = open_checkpoint(hospital / "ckpt", tmp_path / "adapter", rounded=False)
    assert set(source.merged) == set(merged.relative_change)


@pytest.mark.slow
def test_an_fp32_checkpoint_answers_as_with_its_edit_as_an_adapter(
    base: VLM, hospital: Path, hierarchy: Hierarchy, tmp_path: Path
) -> None:
    """At full rank, within 1e-5: what is written merged, and what PEFT makes of the base and the adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base.model.save_pretrained(tmp_path / "base")
    for path in (hospital / "ckpt").iterdir():
        if "safetensors" not in path.name and not (tmp_path / "base" / path.name).exists():
            shutil.copy(path, tmp_path / "base")
    options: dict[str, Any] = {
        "records": write_part(hospital, range(5, 7), tmp_path / "part"),
        "keep": ["none"],
        "device": "cpu",
        "accept": True,
        "batch_size": 16,
    }
    for name, method in {"shielded": Shielded(retain_weight=8.0), "chip": Chip()}.items():
        merged, adapter = tmp_path / f"{name}-merged", tmp_path / f"{name}-adapter"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ChipWarning)
            for save, out in (("merged", merged), ("adapter", adapter)):
                chip.edit(tmp_path / "base", ["patient_17"], out=out, save=save, method=method, **options)
        expected = logits_of(load_vlm(merged, "cpu").model, base, hierarchy)
        actual = logits_of(peft_of(base.model, adapter), base, hierarchy)
        assert (actual - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.slow
def test_an_edit_of_a_merged_adapter_can_be_made_again(base: VLM, hospital: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base.model, tmp_path / "adapter", KINDS["lora"])
    options: dict[str, Any] = {
        "records": write_part(hospital, range(5, 7), tmp_path / "part"),
        "adapter": adapter,
        "device": "cpu",
    }
    chip.edit(
        hospital / "ckpt",
        ["patient_17"],
        out=tmp_path / "out",
        method=Shielded(retain_weight=8.0),
        keep=["none"],
        accept=True,
        force=True,
        batch_size=16,
        rank=3,
        **options,
    )
    assert chip.reproduce(tmp_path / "out", hospital / "ckpt", ["patient_17"], **options).equal
