"""Settings by which a folder's weights would be other than those that lie in its shards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chip.checkpoint.paths import input_error, quoted, resolve_inside
from chip.errors import InputError

_QUANTIZATION_FILE = re.compile(r"(?<![^\W_])(quant|awq|gptq|bnb)|_quant")
"""What the names of files begin with, or a word in them, in which ModelOpt, GPTQ, AWQ, Quanto, Quark and others say how
weights are quantized, when `config.json` does not."""

UNQUANTIZED = "edit the unquantized base checkpoint, then quantize again"
"""What to do about quantized weights."""

_IMPLEMENTATIONS = tuple(f"{private}{part}_implementation" for part in ("attn", "experts") for private in ("", "_"))
SCHEMES = ("quantization_config", "compression_config")
"""Settings that say how weights are quantized."""
_MLX_SCHEME = "quantization"
_MLX_KEYS = {"bits", "group_size", "quant_method", "quant_algo"}


def check_config(path: Path, config: Mapping[str, Any], *, quantized: bool = False) -> None:
    """Raise `InputError` where `config.json`, at `path`, names other weights than the shards, has them fused, names
    code to run, or says that the weights are quantized. Each section, with the settings of a part, is looked at.

    Args:
        quantized: the last is no fault.
    """
    if named := config.get("transformers_weights"):
        what = f"'transformers_weights' has {quoted(str(named))} loaded, and not the weights that chip edits"
        raise input_error(path, what, "take this setting out, or make that file model.safetensors")
    if config.get("configuration_files"):
        what = "'configuration_files' has another configuration loaded"
        raise input_error(path, what, "take this setting out, or make that file config.json")
    if config.get("fusion_config"):
        what = "'fusion_config' has layers fused as they are loaded, which chip does not follow"
        raise input_error(path, what, "take this setting out: the weights are the same without it")
    if not quantized and find_scheme(config) is not None:
        raise input_error(path, "the weights are quantized", edit_the_base(path.parent, config))
    for section in sections(config):
        for name in _IMPLEMENTATIONS:
            if "flex_attention" in str(section.get(name)):
                what = f"{quoted(name)} has attention compiled for each length of text, for minutes"
                raise input_error(path, what, "take this setting out")
            if "/" in str(section.get(name, "")):
                what = f"{quoted(name)} has code from the hub run, {quoted(str(section[name]))}"
                raise input_error(path, what, "take this setting out")


def check_quantization_files(folder: Path) -> None:
    """Raise `InputError` where a file beside `config.json` says how the weights are quantized."""
    for name in sorted(os.listdir(folder)):  # noqa: PTH208 - a link that leads nowhere counts too
        if is_quantization_file(name):
            hint = f"{UNQUANTIZED}; or remove this file, if it is a leftover"
            raise input_error(folder / name, "the weights are quantized", hint)


def is_quantization_file(name: str) -> bool:
    """Whether a file of this name says how the weights are quantized."""
    return name.lower().endswith(".json") and _QUANTIZATION_FILE.search(name.lower()) is not None


def find_scheme(config: Mapping[str, Any]) -> Any:
    """What `config.json` says of how the weights are quantized, as the first section has it that does; None: nothing.

    Mostly it is an object with a `quant_method`; MLX has none, and a stranger may have written anything.
    """
    for section in sections(config):
        scheme = section.get(_MLX_SCHEME)
        if isinstance(scheme, dict) and not _MLX_KEYS.isdisjoint(scheme):
            return {"quant_method": "mlx", **scheme}
        if found := next(filter(None, map(section.get, SCHEMES)), None):
            return found
    return None


def edit_the_base(folder: Path, config: Mapping[str, Any]) -> str:
    """What to do about quantized weights, with the name of the unquantized model: the one that the card in the folder
    or `config.json` says it was made from, where one does."""
    card = _card_data(folder)
    named = [card.get("base_model"), config.get("_name_or_path")]
    first = next((name[0] if isinstance(name, list) else name for name in named if name), None)
    return UNQUANTIZED if not isinstance(first, str) else UNQUANTIZED.replace(",", f", {quoted(first)},", 1)


def _card_data(folder: Path) -> Mapping[str, Any]:
    """What the folder's model card says in its header; nothing where there is no card, or none that can be read."""
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    try:
        return metadata_load(resolve_inside(folder, "README.md")) or {}
    except (InputError, OSError, ValueError, YAMLError, RecursionError):  # no file, no text, no object, no YAML
        return {}


def sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """`config.json` and all objects in it, at any depth."""
    waiting: list[Any] = [config]
    while waiting:
        section = waiting.pop()
        if isinstance(section, dict):
            yield section
            waiting.extend(section.values())
        elif isinstance(section, list):
            waiting.extend(section)
