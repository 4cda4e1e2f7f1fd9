"""A folder whose tensors are not the weights of the model that is loaded is refused before it is built or read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from chip.checkpoint.layout import CONFIG, SINGLE, Checkpoint
from chip.errors import InputError
from chip.model import loading
from chip.model.load_plan import plan_loading
from chip.model.loading import load_vlm
from chip.model.skeleton import build_skeleton
from chip.model.weight_checks import check_weights
from tests.families import build

Tensors = dict[str, Tensor]
QUERY = "language_model.model.layers.0.self_attn.q_proj"
PARAMETER = "model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA in one file, which nobody writes into."""
    return build(tmp_path_factory.mktemp("whole") / "llava", "llava", max_shard_size="1GB")


@pytest.fixture
def folder(llava: Path, tmp_path: Path) -> Path:
    """A fresh copy of its configuration and weights."""
    for name in (CONFIG, SINGLE):
        (tmp_path / name).write_bytes((llava / name).read_bytes())
    return tmp_path


def check(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    check_weights(checkpoint, build_skeleton(folder))


def rewrite(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})


def codes(tensors: Tensors, weight: str, dtype: torch.dtype, scale: str | None) -> None:
    """The weight as codes of another dtype, with what is to multiply them."""
    tensors[weight] = tensors[weight].to(dtype)
    if scale is not None:
        tensors[scale] = torch.ones(1)


def gptq(tensors: Tensors) -> None:
    del tensors[f"{QUERY}.weight"]
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        tensors[f"{QUERY}.{part}"] = torch.zeros(4, 4, dtype=torch.int32)


def original_layout(tensors: Tensors) -> None:
    """As the authors of LLaVA store it."""
    for name in list(tensors):
        if name.startswith("language_model."):
            tensors[f"{name.removeprefix('language_model.')}"] = tensors.pop(name)
        elif name.startswith("vision_tower."):
            del tensors[name]
        else:
            renamed = name.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
            tensors[renamed.replace("multi_modal_projector.linear_2", "model.mm_projector.2")] = tensors.pop(name)


def unmerged(tensors: Tensors) -> None:
    tensors[f"{QUERY}.lora_A.weight"] = torch.zeros(2, 64)
    tensors[f"{QUERY}.lora_B.weight"] = torch.zeros(64, 2)


REFUSED: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "a scale of a name that nobody knows": (
        lambda t: t.update({f"{QUERY}.my_factor": torch.ones(())}),
        "quantized, which config.json does not say: 1 tensor like",
    ),
    "codes of a name that nobody knows": (
        lambda t: t.update({f"{QUERY}.my_codes": torch.ones(64, 8, dtype=torch.uint8)}),
        "quantized, which config.json does not say: 1 tensor like",
    ),
    "fp8 with a scale": (
        lambda t: codes(t, f"{QUERY}.weight", torch.float8_e4m3fn, f"{QUERY}.weight_scale_inv"),
        f"quantized, which config.json does not say: 1 tensor like '{QUERY}.weight_scale_inv'; edit the unquantized",
    ),
    "fp8 without": (lambda t: codes(t, f"{QUERY}.weight", torch.float8_e4m3fn, None), "stored as F8_E4M3, codes"),
    "int8": (lambda t: codes(t, f"{QUERY}.weight", torch.int8, None), "stored as I8, codes that would be loaded as"),
    "int8 of bitsandbytes": (lambda t: codes(t, f"{QUERY}.weight", torch.int8, f"{QUERY}.SCB"), "quantized.*SCB"),
    "4 bits of bitsandbytes": (
        lambda t: codes(t, f"{QUERY}.weight", torch.uint8, f"{QUERY}.weight.absmax"),
        "quantized.*absmax",
    ),
    "GPTQ": (gptq, r"4 tensors like '.*qweight', .* \.\.\.; edit the unquantized"),
    "scales of a cache": (lambda t: t.update({f"{QUERY[:-6]}k_proj.k_scale": torch.ones(1)}), "quantized.*k_scale"),
    "what ModelOpt measured": (
        lambda t: t.update({f"{QUERY}.weight_quantizer._amax": torch.ones(64, 1)}),
        "quantized.*weight_quantizer",
    ),
    "what ModelOpt measured of a cache": (
        lambda t: t.update({f"{QUERY[:-6]}k_bmm_quantizer._amax": torch.ones(1)}),
        "quantized.*k_bmm_quantizer",
    ),
    "a parametrization": (
        lambda t: t.update({f"{QUERY}.parametrizations.weight.original0": torch.ones(64, 1)}),
        "like its own.*parametrizations",
    ),
    "an adapter": (unmerged, "2 tensors of an adapter, not merged into the weights .*; merge it"),
    "the original layout": (original_layout, "without a tensor .* has no place .*; this is another architecture, or"),
    "a tensor missing": (lambda t: t.pop(f"{QUERY}.weight"), f"1 parameter of Llava.* without a tensor .'{PARAMETER}"),
    "the head missing": (lambda t: t.pop("language_model.lm_head.weight"), "without a tensor .'lm_head.weight'"),
    "another shape": (
        lambda t: t.update({f"{QUERY}.weight": torch.zeros(64, 32)}),
        r"has the shape \(64, 32\), and should have \(64, 64\)",
    ),
    "a bias that the class lacks": (
        lambda t: t.update({f"{QUERY}.bias": torch.zeros(64)}),
        f"1 tensor like its own, which Llava.* has no place for .'{QUERY}.bias'.; take the config.json",
    ),
    "a layer too many": (
        lambda t: t.update({f"{QUERY.replace('layers.0', 'layers.99')}.weight": torch.zeros(64, 64)}),
        "like its own.*layers.99",
    ),
    "a copy": (lambda t: t.update({f"ema.{QUERY}.weight": t[f"{QUERY}.weight"].clone()}), "like its own.*'ema"),
    "a parameter twice": (
        lambda t: t.update({f"{PARAMETER}.weight": t[f"{QUERY}.weight"].clone()}),
        f"parameter '{PARAMETER}.weight' has 2 tensors .*; leave one",
    ),
}
"""What is wrong -> how it comes about, and what is said."""


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_the_models_is_refused(folder: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, message = REFUSED[what]
    check(folder)
    rewrite(folder, change)
    monkeypatch.setattr(loading, "load_pretrained", lambda *_: pytest.fail("the model was built"))
    with pytest.raises(InputError, match=message) as caught:
        load_vlm(folder, "cpu")
    assert str(caught.value).startswith(f"{folder}: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "v_head.weight", "mtp.layers.0.mlp.down_proj.weight"]
)
def test_what_is_no_part_of_the_model_is_not_refused(folder: Path, name: str) -> None:
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(64, 96)}))
    check(folder)


def test_a_model_that_is_not_in_the_folder_is_not_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`model_type: llava` in the original layout: the sizes of a 7B model are those of the class's defaults."""
    (folder / CONFIG).write_text(json.dumps({"model_type": "llava", "hidden_size": 64}))
    rewrite(folder, original_layout)
    monkeypatch.setattr(loading, "load_pretrained", lambda *_: pytest.fail("the model was built"))
    with pytest.raises(InputError, match="parameters of LlavaForConditionalGeneration without a tensor"):
        load_vlm(folder, "cpu")


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_more_layers_than_tensors_are_not_built(folder: Path, part: str) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config[part]["num_hidden_layers"] = 10**9
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError, match="'num_hidden_layers' is 1,000,000,000, and the folder has"):
        load_vlm(folder, "cpu")


@pytest.mark.parametrize("family", ["llava", "gemma3", pytest.param("qwen2_vl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", ["saved", "module"])
def test_the_plan_is_what_the_loader_does(family: str, layout: str, tmp_path: Path) -> None:
    """Of a folder that lacks some tensors, and has some that no class takes."""
    build(tmp_path, family, layout=layout, max_shard_size="1GB")
    tensors = load_file(tmp_path / SINGLE)
    for name in list(tensors)[::7]:
        tensors[f"other.{name}"] = tensors.pop(name)
    save_file(tensors, tmp_path / SINGLE, {"format": "pt"})
    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    plan = plan_loading(Checkpoint.open(tmp_path), build_skeleton(tmp_path))
    assert set(plan.missing) == info["missing_keys"] != set()
    assert {plan.unexpected[name] for name in plan.unexpected.keys() - plan.ignored} == info["unexpected_keys"] != set()
