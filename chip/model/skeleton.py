"""A checkpoint's model without its weights, built from `config.json` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText

from chip.checkpoint.json_file import read_json
from chip.checkpoint.layout import CONFIG
from chip.checkpoint.paths import check_all_files
from chip.errors import InputError
from chip.model.families import ORIGINAL_LAYOUTS
from chip.model.quiet import refusing

_TROUBLE = "transformers cannot build a vision-language model from it"
_DEPTHS = ("num_hidden_layers", "num_layers", "depth", "encoder_layers", "decoder_layers")
"""Settings that say how many layers a model or a part of it has."""
_COMPUTED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_HINT = "fetch that file again, or use a checkpoint of a family it knows"


def build_skeleton(folder: Path, tensors: int | None = None) -> Any:
    """The model of the class that `AutoModelForImageTextToText` loads, on the meta device: no weights are read.

    Code that comes with the checkpoint is never run.

    Args:
        tensors: how many the folder holds; a configuration with more layers is not built.

    Raises:
        InputError: transformers' own code has no model for the folder's `config.json`, or cannot follow what it says.
    """
    path = folder / CONFIG
    check_all_files(folder)
    _check_layout(path)
    with refusing(path, _TROUBLE, _HINT):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _check_architectures(path, config.architectures)
    if tensors is not None:
        _check_depth(path, config, tensors)
    with refusing(path, _TROUBLE, _HINT), torch.device("meta"):
        # Parameters are the same under every attention, and this one asks for no other package.
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False, attn_implementation="eager")
    if model.dtype not in _COMPUTED:
        raise InputError(f"{path}: its dtype is {model.dtype}, which no model computes in; give the weights' own")
    return model


def _check_layout(path: Path) -> None:
    """Raise `InputError` where weights are in the layout of a family's authors, and say how to convert them."""
    named = read_json(path.parent, path.name)[0].get("architectures")
    for name in named if isinstance(named, list) else ():
        if isinstance(name, str) and name in ORIGINAL_LAYOUTS:
            family, authors = ORIGINAL_LAYOUTS[name]
            script = f"models/{family}/convert_{family}_weights_to_hf.py"
            what = f"{name} is the original layout of {authors}, and chip edits that of transformers"
            raise InputError(
                f"{path}: {what}; convert it by {script} of transformers' source, or take its -hf checkpoint"
            )


def _check_architectures(path: Path, architectures: object) -> None:
    """AutoModel goes by `model_type` alone, and would load the weights into a class that they do not fit."""
    names = [] if architectures is None else architectures
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: its architectures {architectures!r} are no list of names; fetch that file again")
    for name in names:
        if not hasattr(transformers, name):
            raise InputError(f"{path}: transformers has no {name}; use a checkpoint in its own layout")


def _check_depth(path: Path, config: Any, tensors: int) -> None:
    """A layer has a tensor at least: where there are fewer, building a million layers would show no more."""
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        for name in _DEPTHS:
            depth = getattr(part, name, None)
            if isinstance(depth, int) and depth > tensors:
                what = f"{name!r} is {depth:,}, and the folder has {tensors:,} tensors"
                raise InputError(f"{path}: {what}; take the config.json of these weights")
