"""Adapters of every kind that chip merges, as PEFT makes and saves them."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chip.checkpoint.adapter import ADAPTER_WEIGHTS
from chip.checkpoint.layout import ADAPTER_CONFIG

_LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
_LAYERS = r".*language_model.*\.(q_proj|down_proj)"

KINDS: dict[str, dict[str, Any]] = {
    "lora": _LORA,
    "rslora": _LORA | {"use_rslora": True},
    "dora": _LORA | {"use_dora": True},
    "modules_to_save": _LORA | {"modules_to_save": ["multi_modal_projector", "norm"]},
    "patterns": _LORA | {"rank_pattern": {"down_proj": 6}, "alpha_pattern": {r"layers\.1\..*": 3}},
    "regex": _LORA | {"target_modules": _LAYERS, "layers_to_transform": None},
    "some layers": _LORA | {"layers_to_transform": [1, 2], "layers_pattern": "layers", "exclude_modules": ["q_proj"]},
    "biases of its own": _LORA | {"target_modules": ["linear_1", "linear_2"], "lora_bias": True},
    "embeddings": _LORA | {"target_modules": ["embed_tokens"]},
    "convolution": _LORA | {"target_modules": ["patch_embedding", "fc1"]},
    "everything": _LORA
    | {
        "target_modules": _LAYERS,
        "use_dora": True,
        "use_rslora": True,
        "modules_to_save": ["multi_modal_projector"],
        "rank_pattern": {r"layers\.1\..*": 2},
    },
}
"""Name -> settings of `peft.LoraConfig`."""


def make_adapter(model: Any, folder: Path, settings: Mapping[str, Any], size: float = 0.02) -> Path:
    """The folder, with an adapter to `model` (which is not changed) whose every parameter is off its start by `size`.

    It is saved without the weights of embeddings, which are the base's.
    """
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice
        wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**settings))
        for value in wrapped.parameters():
            if value.requires_grad:
                value.data += size * torch.randn_like(value)
        wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


def peft_of(model: Any, folder: Path) -> Any:
    """A copy of `model` as plain PEFT loads the adapter in the folder into it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


def rewrite_config(folder: Path, **settings: object) -> None:
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rewrite_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / ADAPTER_WEIGHTS))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / ADAPTER_WEIGHTS)
