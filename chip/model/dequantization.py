"""A quantized checkpoint as a plain one in bf16: weight by weight, under the names that they had before."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from chip.checkpoint.config_checks import SCHEMES, edit_the_base, is_quantization_file
from chip.checkpoint.contents import folder_contents
from chip.checkpoint.folder import copy_file
from chip.checkpoint.header import FLOATS
from chip.checkpoint.layout import CONFIG, INDEX, SINGLE, Checkpoint
from chip.checkpoint.paths import input_error, quoted
from chip.checkpoint.quantized import Quantized, TemporaryFolder
from chip.checkpoint.writer import round_once
from chip.errors import ChipWarning, InputError, reason
from chip.model.quantization_formats import Format, find_format
from chip.model.quiet import refusing
from chip.model.skeleton import build_skeleton
from chip.model.weight_checks import check_weights
from chip.progress import ProgressCallback, silent

_SHARD = 2_000_000_000  # bytes of a file; so much is in memory at once
_COUNTS = ("I64", "I32", "BOOL")
"""Dtypes of what is no weight in a model that is not quantized, such as the places of tokens."""
_DTYPES = ("dtype", "torch_dtype")


def dequantize(quantized: Checkpoint, progress: ProgressCallback = silent) -> Checkpoint:
    """A plain copy of a quantized checkpoint, in a temporary folder that lasts as long as what is returned.

    Quantized weights, and what is stored in fp16 beside them, become bf16, rounded once; all else is as it was. A line
    says so. The same folder gives the same bytes. One file's worth of weights is in memory at a time.

    Raises:
        InputError: the format is not read here, or needs a package that is missing; transformers has no such model, or
            the dequantized weights are not its; there is no space for the copy.
    """
    folder, copy = quantized.folder, TemporaryFolder()
    form = find_format(quantized)
    skeleton = build_skeleton(folder, len(quantized.entries))
    target = copy.path / folder.resolve().name
    try:
        target.mkdir()
        _copy_others(quantized, target)
        _write_weights(_tensors(quantized, form, progress), target)
    except (OSError, SafetensorError) as error:
        what = f"cannot be written dequantized ({reason(error)})"
        raise input_error(folder, what, "free some space, or have TMPDIR name a disk that has it") from error
    quantized.check_unchanged()
    try:
        plain = Checkpoint.open(target)
        check_weights(plain, skeleton)
    except InputError as error:  # about the copy, of which nobody knows
        raise InputError(error.message.replace(str(target), str(folder))) from error
    message = f"{folder}: quantized ({form.words}); its weights are dequantized to bf16 first"
    warnings.warn(message, ChipWarning, stacklevel=3)
    return replace(plain, quantized=Quantized(quantized, form.words, copy))


def _copy_others(quantized: Checkpoint, target: Path) -> None:
    """All files that a copy takes over, but for the weights and what says how they are quantized."""
    skipped = {*quantized.shards, INDEX, CONFIG}
    for path, relative in folder_contents(quantized).copied:
        if str(relative) not in skipped and not is_quantization_file(str(relative)):
            copy_file(path, target / relative)
    config = json.dumps(_plain_config(quantized.config), indent=2, ensure_ascii=False)
    (target / CONFIG).write_text(config + "\n", encoding="utf-8")


def _plain_config(config: Any, top: bool = True) -> Any:
    """`config.json` of the model before it was quantized, in bf16."""
    if isinstance(config, list):
        return [_plain_config(part, top=False) for part in config]
    if not isinstance(config, dict):
        return config
    plain = {name: _plain_config(value, top=False) for name, value in config.items() if name not in SCHEMES}
    for name in _DTYPES:
        if plain.get(name) == "float16" or (top and name in plain):
            plain[name] = "bfloat16"
    return plain | ({"dtype": "bfloat16"} if top and not any(name in plain for name in _DTYPES) else {})


def _tensors(quantized: Checkpoint, form: Format, progress: ProgressCallback) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the plain checkpoint, by name, in the order in which the first part of each is stored."""
    entries = quantized.entries
    weights = form.weights(entries)
    if not weights:
        what = f"the weights are quantized ({form.words}) by its word, and no tensor is"
        raise input_error(quantized.folder / CONFIG, what, "take that setting out, or fetch the weights again")
    owner = {part: name for name, parts in weights.items() for part in parts.values()}
    done: set[str] = set()
    with progress("dequantizing", len(entries)) as advance:
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].shard, item[1].begin)):
            advance(1)
            weight = owner.get(name, name)
            if weight in done or (name not in owner and form.leaves_out(name)):
                continue
            done.add(weight)
            if name in owner:
                yield weight, _dequantized(quantized, form, weight, weights[weight])
                continue
            if entry.dtype not in (*FLOATS, *_COUNTS):
                what = f"tensor {quoted(name)} is stored as {entry.dtype}, of which {form.words} says nothing"
                raise input_error(quantized.folder, what, edit_the_base(quantized.folder, quantized.config))
            value = quantized.read(name)
            yield name, value.bfloat16() if entry.dtype == "F16" else value


def _dequantized(quantized: Checkpoint, form: Format, name: str, parts: Mapping[str, str]) -> Tensor:
    tensors = {local: quantized.read(part) for local, part in parts.items()}
    what = f"tensor {quoted(name)} cannot be dequantized ({form.words})"
    with refusing(quantized.folder, what, edit_the_base(quantized.folder, quantized.config)):
        value = round_once(form.dequantize(name.removesuffix(form.weight), tensors), torch.bfloat16)
    if not value.isfinite().all():
        what = f"tensor {quoted(name)} is NaN or infinite once dequantized"
        raise input_error(quantized.folder, what, "fetch the checkpoint again")
    return value


def _write_weights(tensors: Iterator[tuple[str, Tensor]], target: Path) -> None:
    """Files of at most `_SHARD` bytes, or of one tensor that has more; and an index where there are several."""
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    size = total = 0

    def write() -> None:
        save_file(waiting, target / f"{len(shards)}.part", {"format": "pt"})
        shards.append(list(waiting))
        waiting.clear()

    for name, value in tensors:
        if waiting and size + value.nbytes > _SHARD:
            write()
            size = 0
        waiting[name] = value.contiguous()
        size, total = size + value.nbytes, total + value.nbytes
    write()
    if len(shards) == 1:
        (target / "0.part").rename(target / SINGLE)
        return
    files = [f"model-{place + 1:05}-of-{len(shards):05}.safetensors" for place in range(len(shards))]
    for place, file in enumerate(files):
        (target / f"{place}.part").rename(target / file)
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
