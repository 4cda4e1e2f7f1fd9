"""Settings by which a folder's weights would be other than those that lie in its shards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chip.checkpoint.paths import input_error, quoted

QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json")
"""Where ModelOpt, GPTQ, AWQ and others say how weights are quantized, when `config.json` does not."""

UNQUANTIZED = "edit the unquantized base checkpoint, then quantize again"
"""What to do about quantized weights."""

_IMPLEMENTATIONS = tuple(f"{private}{part}_implementation" for part in ("attn", "experts") for private in ("", "_"))
_SCHEMES = ("quantization_config", "compression_config")
_MLX_SCHEME = "quantization"
_MLX_KEYS = {"bits", "group_size", "quant_method", "quant_algo"}


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise `InputError` where `config.json`, at `path`, names other weights than the shards, says that these are
    quantized, or names code to run. The settings of a model's parts stand in sections, of which each is looked at."""
    if named := config.get("transformers_weights"):
        what = f"'transformers_weights' has {quoted(str(named))} loaded, and not the weights that chip edits"
        raise input_error(path, what, "take this setting out, or make that file model.safetensors")
    if config.get("configuration_files"):
        what = "'configuration_files' has another configuration loaded"
        raise input_error(path, what, "take this setting out, or make that file config.json")
    for section in _sections(config):
        scheme = section.get(_MLX_SCHEME)
        in_mlx = isinstance(scheme, dict) and not _MLX_KEYS.isdisjoint(scheme)
        if in_mlx or any(section.get(name) for name in _SCHEMES):
            raise input_error(path, "the weights are quantized", UNQUANTIZED)
        for name in _IMPLEMENTATIONS:
            if "/" in str(section.get(name, "")):
                what = f"{quoted(name)} has code from the hub run, {quoted(str(section[name]))}"
                raise input_error(path, what, "take this setting out")


def check_quantization_files(folder: Path) -> None:
    """Raise `InputError` where a file beside `config.json` says how the weights are quantized."""
    for name in QUANTIZATION_FILES:
        if os.path.lexists(folder / name):
            hint = f"{UNQUANTIZED}; or remove this file, if it is a leftover"
            raise input_error(folder / name, "the weights are quantized", hint)


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    waiting: list[Any] = [config]
    while waiting:
        section = waiting.pop()
        if isinstance(section, dict):
            yield section
            waiting.extend(section.values())
        elif isinstance(section, list):
            waiting.extend(section)
