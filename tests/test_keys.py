"""The names on disk against those that transformers' own loader finds, and what has no name of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from chip.checkpoint.keys import disk_names, key_map
from chip.checkpoint.layout import SINGLE, Checkpoint
from chip.errors import InputError

TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def qwen2_5_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": rope}, vision_config=vision, tie_word_embeddings=False
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def llava(text: dict[str, Any] | None = None) -> PreTrainedModel:
    config = transformers.LlavaConfig(
        text_config=TEXT | (text or {"model_type": "llama"}),
        vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 8},
        image_token_index=3,
        tie_word_embeddings=False,
    )
    return transformers.LlavaForConditionalGeneration(config)


def gemma3() -> PreTrainedModel:
    config = transformers.Gemma3Config(
        text_config=TEXT | {"head_dim": 8},
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


FAMILIES = {"qwen2_5_vl": qwen2_5_vl, "llava": llava, "gemma3": gemma3}
DOWN_PROJ = "model.language_model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in folders.items():
        FAMILIES[family]().save_pretrained(folder)
    return folders


@pytest.mark.parametrize("family", FAMILIES)
def test_each_parameter_loads_from_the_tensor_it_is_mapped_to(saved: dict[str, Path], family: str) -> None:
    checkpoint = Checkpoint.open(saved[family])
    order = list(checkpoint.entries)
    # Every tensor is its own number throughout, so a loaded parameter says which tensor it came from.
    numbered = {name: torch.full(checkpoint.entries[name].shape, float(i)) for i, name in enumerate(order)}
    model_class = getattr(transformers, checkpoint.config["architectures"][0])
    config = transformers.AutoConfig.from_pretrained(saved[family])
    model = model_class.from_pretrained(None, config=config, state_dict=numbered)
    loaded = {name: order[int(value.flatten()[0])] for name, value in model.named_parameters()}

    found = key_map(checkpoint)
    assert {name: found[name] for name in loaded} == loaded
    assert set(found.values()) == set(order)
    assert any(name != on_disk for name, on_disk in found.items())  # the layout on disk is the old one
    assert disk_names(checkpoint, [DOWN_PROJ]) == {DOWN_PROJ: loaded[DOWN_PROJ]}


def test_a_large_model_is_mapped_without_its_weights(tmp_path: Path) -> None:
    config = transformers.Qwen2_5_VLConfig(architectures=["Qwen2_5_VLForConditionalGeneration"])
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    config.save_pretrained(tmp_path)
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in model.state_dict().items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (tmp_path / SINGLE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # the weights, more than 100 GB, are a hole
    assert end > 100e9
    assert key_map(Checkpoint.open(tmp_path)) == {name: name for name in header}


def test_tensors_without_a_parameter_are_left_out(saved: dict[str, Path], tmp_path: Path) -> None:
    before = key_map(Checkpoint.open(saved["llava"]))
    tensors = load_file(saved["llava"] / SINGLE)
    projector = "model.multi_modal_projector.linear_1.weight"
    tensors[before[projector]] = torch.zeros(3, 3)  # a shape that the model has not
    tensors["mtp.layers.0.weight"] = torch.zeros(2)
    (tmp_path / "config.json").write_bytes((saved["llava"] / "config.json").read_bytes())
    save_file(tensors, tmp_path / SINGLE)
    after = key_map(Checkpoint.open(tmp_path))
    assert after == {name: on_disk for name, on_disk in before.items() if name != projector}


def test_fused_parameters_have_no_name_of_their_own(tmp_path: Path) -> None:
    experts = {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
    llava(experts).save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert any(".experts.1." in name for name in checkpoint.entries)
    found = key_map(checkpoint)
    assert not any("experts" in name for name in (*found, *found.values()))
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in found
    with pytest.raises(InputError, match=r"experts\.down_proj' has no tensor of its own"):
        disk_names(checkpoint, ["model.language_model.layers.0.mlp.experts.down_proj"])


def test_every_parameter_that_cannot_be_edited_is_named(saved: dict[str, Path]) -> None:
    checkpoint = Checkpoint.open(saved["gemma3"])
    embedding, head = "model.language_model.embed_tokens.weight", "lm_head.weight"
    with pytest.raises(InputError) as caught:
        disk_names(checkpoint, [DOWN_PROJ, embedding, head, "model.layers.7.weight"])
    message = str(caught.value)
    assert DOWN_PROJ not in message
    assert f"'{embedding}' is tied to '{head}'" in message
    assert f"'{head}' is tied to '{embedding}'" in message
    assert "'model.layers.7.weight' is no parameter of Gemma3ForConditionalGeneration" in message
    untied = Checkpoint.open(saved["llava"])
    assert set(disk_names(untied, [embedding, head])) == {embedding, head}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "transformers has no LlavaLlamaForCausalLM"),
        ({"model_type": "nothing_known"}, "nothing_known"),
        ({"model_type": "llama", "architectures": None}, "Unrecognized configuration class"),
        ({"text_config": {"hidden_size": "many"}}, "cannot build"),
    ],
)
def test_unknown_models_are_refused(
    saved: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = json.loads((saved["llava"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    (tmp_path / SINGLE).write_bytes((saved["llava"] / SINGLE).read_bytes())
    with pytest.raises(InputError, match=message) as caught:
        key_map(Checkpoint.open(tmp_path))
    assert "\n" not in str(caught.value)


def test_code_in_the_folder_is_not_run(saved: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((saved["llava"] / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('this code was run')")
    (tmp_path / SINGLE).write_bytes((saved["llava"] / SINGLE).read_bytes())
    with pytest.raises(InputError, match="cannot build"):
        key_map(Checkpoint.open(tmp_path))
