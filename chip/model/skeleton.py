"""A checkpoint's model without its weights, built from `config.json` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText

from chip.checkpoint.layout import CONFIG
from chip.checkpoint.paths import check_all_files
from chip.errors import InputError
from chip.model.quiet import refusing

_TROUBLE = "transformers cannot build a vision-language model from it"
_HINT = "fetch that file again, or use a checkpoint of a family it knows"


def build_skeleton(folder: Path) -> Any:
    """The model of the class that `AutoModelForImageTextToText` loads, on the meta device: no weights are read.

    Code that comes with the checkpoint is never run.

    Raises:
        InputError: transformers' own code has no model for the folder's `config.json`, or cannot follow what it says.
    """
    path = folder / CONFIG
    check_all_files(folder)
    with refusing(path, _TROUBLE, _HINT):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _check_architectures(path, config.architectures)
    with refusing(path, _TROUBLE, _HINT), torch.device("meta"):
        # Parameters are the same under every attention, and this one asks for no other package.
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False, attn_implementation="eager")


def _check_architectures(path: Path, architectures: object) -> None:
    """AutoModel goes by `model_type` alone, and would load the weights into a class that they do not fit."""
    names = architectures if isinstance(architectures, list) else []
    for name in names:
        if not hasattr(transformers, str(name)):
            raise InputError(f"{path}: transformers has no {name}; use a checkpoint in its own layout")
