"""An adapter by the model's own names: transformers has renamed modules since many adapters were trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedModel

from chip.checkpoint.adapter import Adapter
from chip.model.load_plan import own_names

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
    if all(old == new for old, new in (layers | whole).items()):
        return names, {}
    return names, _settings(adapter.config, layers, whole)


def _settings(config: Mapping[str, Any], layers: Mapping[str, str], whole: Mapping[str, str]) -> dict[str, Any]:
    """Each layer by itself: patterns of old names say nothing of those of today.

    Args:
        layers: name of a layer that is adapted -> its name today.
        whole: name of a parameter that is in the adapter as a whole -> its name today.
    """
    patterns = {key: _of_each(config.get(key) or {}, layers) for key in ("rank_pattern", "alpha_pattern")}
    chosen = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    saved = {module for name in config.get("modules_to_save") or () for module in _saved_modules(name, whole)}
    return {"target_modules": sorted(layers.values()), "modules_to_save": sorted(saved) or None, **chosen, **patterns}


def _of_each(pattern: Mapping[str, int], layers: Mapping[str, str]) -> dict[str, int]:
    """Today's name of a layer -> what the pattern says of it."""
    from peft.utils.other import get_pattern_key

    keys = {new: get_pattern_key(list(pattern), old) for old, new in layers.items()}
    return {re.escape(new): pattern[key] for new, key in keys.items() if key in pattern}


def _saved_modules(name: str, whole: Mapping[str, str]) -> Iterator[str]:
    """Today's names of the modules called `name` at their end, in which parameters lie."""
    for old, new in whole.items():
        _, found, own = f".{old}".rpartition(f".{name}.")
        if found:
            yield new.removesuffix(f".{own}")
