"""The names on disk against those that transformers' own loader finds, and what has no name of its own."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from chip.checkpoint.layout import CONFIG, SINGLE, Checkpoint
from chip.errors import InputError
from chip.model.tensor_names import disk_names, key_map
from tests.families import FAMILIES, LAYOUTS, build

DOWN_PROJ = "model.language_model.layers.1.mlp.down_proj.weight"
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
KEPT_NAMES = {"qwen3_vl", "idefics3", "smolvlm"}
"""Families whose parameters are named on disk as in the module."""
TIED = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "paligemma": "PaliGemmaForConditionalGeneration",
}
"""Families whose head is the embedding, and their classes."""

FolderOf = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """A family's checkpoint in one of the layouts, built when first asked for. Nobody writes into it."""

    @cache
    def folder(family: str, layout: str) -> Path:
        return build(tmp_path_factory.mktemp(f"{family}-{layout}"), family, layout=layout)

    return folder


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    """A LLaVA in a single file, fresh: a test may write into it."""
    return build(tmp_path / "llava", "llava", max_shard_size="1GB")


def loaded_from(checkpoint: Checkpoint) -> dict[str, str]:
    """Parameter -> the name on disk that transformers' own loader fills it from."""
    order = list(checkpoint.entries)
    # Every tensor is its own number throughout, so a loaded parameter says which tensor it came from.
    numbered = {name: torch.full(checkpoint.entries[name].shape, float(i)) for i, name in enumerate(order)}
    model_class = getattr(transformers, checkpoint.config["architectures"][0])
    config = transformers.AutoConfig.from_pretrained(checkpoint.folder)
    model = model_class.from_pretrained(None, config=config, state_dict=numbered, dtype=torch.float32)
    return {name: order[int(value.flatten()[0])] for name, value in model.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_parameter_loads_from_the_tensor_it_is_mapped_to(folder_of: FolderOf, family: str, layout: str) -> None:
    checkpoint = Checkpoint.open(folder_of(family, layout))
    assert len(checkpoint.shards) > 1
    loaded = loaded_from(checkpoint)

    found = key_map(checkpoint)
    assert found == loaded
    assert set(found.values()) == set(checkpoint.entries)
    untied = set(loaded) - ({EMBEDDING} if family in TIED else set())
    assert disk_names(checkpoint, untied) == {name: loaded[name] for name in untied}


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts_differ_where_the_family_was_renamed(folder_of: FolderOf, family: str) -> None:
    saved, module = (set(Checkpoint.open(folder_of(family, layout)).entries) for layout in LAYOUTS)
    assert module == {name for name, _ in FAMILIES[family]().named_parameters()}
    assert saved & module <= {HEAD} if family not in KEPT_NAMES else saved == module


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


def test_tensors_without_a_parameter_are_left_out(one_file: Path) -> None:
    before = key_map(Checkpoint.open(one_file))
    tensors = load_file(one_file / SINGLE)
    projector = "model.multi_modal_projector.linear_1.weight"
    tensors[before[projector]] = torch.zeros(3, 3)  # a shape that the model has not
    tensors["mtp.layers.0.weight"] = torch.zeros(2)
    save_file(tensors, one_file / SINGLE)
    after = key_map(Checkpoint.open(one_file))
    assert after == {name: on_disk for name, on_disk in before.items() if name != projector}


def mixture_of_experts() -> PreTrainedModel:
    """A LLaVA with a Mixtral: on disk every expert has matrices of its own, in the module they are one."""
    config = FAMILIES["llava"]().config
    experts = {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
    text = config.text_config.to_dict() | experts
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(**config.to_dict() | {"text_config": text})
    )


def test_fused_parameters_have_no_name_of_their_own(tmp_path: Path) -> None:
    mixture_of_experts().save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert any(".experts.1." in name for name in checkpoint.entries)
    found = key_map(checkpoint)
    assert not any("experts" in name for name in (*found, *found.values()))
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in found
    with pytest.raises(InputError, match=r"experts\.down_proj' has no tensor of its own"):
        disk_names(checkpoint, ["model.language_model.layers.0.mlp.experts.down_proj"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("family", "model"), TIED.items())
def test_every_parameter_that_cannot_be_edited_is_named(
    folder_of: FolderOf, family: str, model: str, layout: str
) -> None:
    checkpoint = Checkpoint.open(folder_of(family, layout))
    with pytest.raises(InputError) as caught:
        disk_names(checkpoint, [DOWN_PROJ, EMBEDDING, HEAD, "model.layers.7.weight"])
    message = str(caught.value)
    assert DOWN_PROJ not in message
    assert f"'{EMBEDDING}' is tied to '{HEAD}'" in message
    assert f"'{HEAD}' is tied to '{EMBEDDING}'" in message
    assert f"'model.layers.7.weight' is no parameter of {model}" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlavaMptForCausalLM"]}, "transformers has no LlavaMptForCausalLM"),
        ({"model_type": "nothing_known"}, "nothing_known"),
        ({"model_type": "llama", "architectures": None}, "Unrecognized configuration class"),
        ({"text_config": {"hidden_size": "many"}}, "cannot build"),
    ],
)
def test_unknown_models_are_refused(one_file: Path, changes: dict[str, Any], message: str) -> None:
    config = json.loads((one_file / CONFIG).read_text())
    (one_file / CONFIG).write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=message) as caught:
        key_map(Checkpoint.open(one_file))
    assert "\n" not in str(caught.value)
