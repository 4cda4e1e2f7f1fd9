"""An adapter by the model's own names: transformers has renamed modules since many adapters were trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from chip.checkpoint.adapter import Adapter
from chip.checkpoint.layout import ADAPTER_CONFIG
from chip.checkpoint.paths import input_error
from chip.model.load_plan import own_names
from chip.model.quiet import refusing

PREFIX = "base_model.model."
"""What peft puts before the model's names."""
_OF_LAYER = re.compile(r"(.+?)\.((?:lora_|base_layer\.).+)")
"""A tensor of a layer that is adapted: the layer, and what it is there."""


def in_own_names(model: PreTrainedModel, adapter: Adapter) -> tuple[dict[str, str], dict[str, Any]]:
    """The adapter's tensors by the names that the model has today, as its checkpoints' tensors are renamed.

    Args:
        model: the base's, without the adapter; it may be one without weights.

    Returns:
        Name today -> name in the file. And the settings that go by modules' names, by those of today; none where all
        names are.

    Raises:
        InputError: two tensors have one name today.
    """
    layers: dict[str, str] = {}
    whole: dict[str, str] = {}
    names: dict[str, str] = {}
    given = [name.removeprefix(PREFIX) for name in adapter.entries]
    parts = {name: _OF_LAYER.fullmatch(name) for name in given}
    known = own_names(model, [name if part is None else f"{part[1]}.weight" for name, part in parts.items()])
    for stored, name in zip(adapter.entries, given, strict=True):
        if (part := parts[name]) is None:
            today = whole[name] = known[name]
        else:
            layers[part[1]] = known[f"{part[1]}.weight"].removesuffix(".weight")
            today = f"{layers[part[1]]}.{part[2]}"
        names[f"{PREFIX}{today}" if stored.startswith(PREFIX) else stored] = stored
    if len(names) < len(adapter.entries):
        raise input_error(adapter.folder, "two of its tensors are one by the names of today", "save the adapter again")
    if all(old == new for old, new in (layers | whole).items()):
        return names, {}
    return names, _settings(adapter, layers, whole)


def _settings(adapter: Adapter, layers: Mapping[str, str], whole: Mapping[str, str]) -> dict[str, Any]:
    """Each layer by itself: patterns of old names say nothing of those of today. What is no pattern peft will refuse.

    Args:
        layers: name of a layer that is adapted -> its name today.
        whole: name of a parameter that is in the adapter as a whole -> its name today.
    """
    settings: dict[str, Any] = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    for key in ("rank_pattern", "alpha_pattern"):
        if isinstance(pattern := adapter.config.get(key), dict):
            settings[key] = _of_each(pattern, layers, adapter.folder / ADAPTER_CONFIG)
    if isinstance(saved := adapter.config.get("modules_to_save"), list):
        settings["modules_to_save"] = sorted({module for name in saved for module in _saved_modules(name, whole)})
    return settings | {"target_modules": sorted(layers.values())}


def _of_each(pattern: Mapping[str, Any], layers: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Today's name of a layer -> what the pattern says of it."""
    from peft.utils.other import get_pattern_key

    with refusing(path, "peft cannot follow it", "save the adapter again"):
        keys = {new: get_pattern_key(list(pattern), old) for old, new in layers.items()}
    return {re.escape(new): pattern[key] for new, key in keys.items() if key in pattern}


def _saved_modules(name: object, whole: Mapping[str, str]) -> Iterator[str]:
    """Today's names of the modules called `name` at their end, in which parameters lie."""
    for old, new in whole.items():
        _, found, own = f".{old}".rpartition(f".{name}.")
        if found:
            yield new.removesuffix(f".{own}")
