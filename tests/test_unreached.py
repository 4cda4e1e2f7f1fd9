"""What an edit does not reach is said before it runs: experts, other towers, tensors that are not loaded."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file, save_file

import chip
from chip.checkpoint.layout import CONFIG, INDEX, SINGLE, Checkpoint
from chip.errors import ChipWarning, InputError
from chip.model.skeleton import build_skeleton
from chip.model.unreached import describe_unreached
from chip.report.text.inspect import print_inspection
from tests.families import FAMILIES, build


def notes(folder: Path) -> list[str]:
    return describe_unreached(Checkpoint.open(folder), build_skeleton(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build(tmp_path / "llava", "llava", max_shard_size="1GB")


def test_nothing_is_said_where_all_is_reached(folder: Path) -> None:
    assert notes(folder) == []
    assert chip.inspect(folder).notes == ()


def test_tensors_that_are_not_loaded_are_counted_and_named(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    tensors |= {f"mtp.layers.0.{part}.weight": torch.ones(2) for part in ("a", "b", "c", "d")}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # computed by the model itself
    save_file(tensors, folder / SINGLE)
    names = "'mtp.layers.0.a.weight', 'mtp.layers.0.b.weight', 'mtp.layers.0.c.weight', ..."
    assert notes(folder) == [f"4 tensors are not loaded, and copied unedited: {names}"]


def test_experts_and_another_class_are_named(tmp_path: Path) -> None:
    config = FAMILIES["llava"]().config
    experts = {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
    text = config.text_config.to_dict() | experts
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(**config.to_dict() | {"text_config": text})
    )
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(content | {"architectures": ["LlavaModel"]}))
    layers = model.model.language_model.layers
    numel = sum(layer.mlp.experts.gate_up_proj.numel() for layer in layers)
    assert notes(tmp_path) == [
        f"{len(layers)} of {len(layers)} layers of the text model have experts: an edit does not reach {numel:,} of "
        "their parameters",
        "config.json names LlavaModel, and what is loaded and edited is LlavaForConditionalGeneration",
    ]


def test_inspect_shows_it_and_edit_says_it_before_anything_is_loaded(hospital: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    folder.mkdir()
    tensors = {"mtp.weight": torch.ones(2)}
    for path in (hospital / "ckpt").iterdir():
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif path.name != INDEX:
            (folder / path.name).write_bytes(path.read_bytes())
    save_file(tensors, folder / SINGLE)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(bytes(64))
    not_loaded = "1 tensor is not loaded, and copied unedited: 'mtp.weight'"
    inspection = chip.inspect(folder)
    assert inspection.notes[0] == not_loaded
    assert inspection.notes[1].startswith("not copied: 1 file ")
    console = Console(width=200, file=io.StringIO(), record=True)
    print_inspection(inspection, console)
    assert not_loaded in console.export_text()
    (folder / "generation_config.json").write_text("[]")  # the first that loading looks at
    with (
        pytest.warns(ChipWarning, match=not_loaded),
        pytest.warns(ChipWarning, match=r"not copied: 1 file .*\('onnx/'\)"),
        pytest.raises(InputError, match="generation_config"),
    ):
        chip.edit(folder, ["patient_1"], records=hospital / "records.jsonl", out=tmp_path / "out")
