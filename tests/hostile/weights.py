"""Weights and their headers: tensors of other shapes, NaN, names that lead elsewhere, files that end too soon."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.hostile.case import (
    DIFF,
    EDIT,
    INSPECT,
    Case,
    Harm,
    both,
    either,
    passes,
    put,
    refused,
    remove,
    shorten,
    sparse,
    write,
)

AT = "ckpt"
FILE = "ckpt/model.safetensors"
UP = "layers.1.mlp.up_proj.weight"

Tensors = dict[str, torch.Tensor]


def tensors(change: Callable[[Tensors], None]) -> Harm:
    def harm(folder: Path) -> None:
        content = load_file(folder / FILE)
        change(content)
        save_file(content, folder / FILE, metadata={"format": "pt"})

    return harm


def called(part: str, content: Tensors) -> str:
    return next(name for name in content if part in name)


def fill(part: str, value: float) -> Harm:
    """One number in the tensor."""

    def change(content: Tensors) -> None:
        content[called(part, content)].view(-1)[0] = value

    return tensors(change)


def shape(part: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Harm:
    def change(content: Tensors) -> None:
        name = called(part, content)
        content[name] = make(content[name]).contiguous()

    return tensors(change)


def _drop_layer(content: Tensors) -> None:
    for name in [name for name in content if "layers.2." in name]:
        del content[name]


def rename(old: str, new: str) -> Harm:
    def change(content: Tensors) -> None:
        name = called(old, content)
        content[name.replace(old, new)] = content.pop(name)

    return tensors(change)


def header(change: Callable[[dict[str, Any]], object]) -> Harm:
    """Another header before the same bytes."""

    def harm(folder: Path) -> None:
        content = (folder / FILE).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + length])
        change(entries)
        text = json.dumps(entries).encode()
        (folder / FILE).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return harm


def entry(**fields: object) -> Harm:
    """Other values in the entry of one tensor."""
    return header(lambda entries: entries[next(name for name in entries if UP in name)].update(fields))


def length(number: int) -> Harm:
    """Another length of the header."""

    def harm(folder: Path) -> None:
        content = (folder / FILE).read_bytes()
        (folder / FILE).write_bytes(struct.pack("<Q", number) + content[8:])

    return harm


def other(harm: Harm) -> Harm:
    """A copy of the checkpoint, which is then spoiled in `ckpt`."""
    return both(lambda folder: shutil.copytree(folder / "ckpt", folder / "other"), harm)


HEADERS: dict[str, Harm] = {
    "a header of no bytes": length(0),
    "a header of 2⁶³ bytes": length(2**63),
    "a header of 100 MB": length(100_000_000),
    "a header that is a byte short": length(1000),
    "a shape of no sizes": entry(shape="x"),
    "a negative shape": entry(shape=[-1, 64]),
    "a shape of 2⁶⁴": entry(shape=[2**64, 64]),
    "a shape of 2⁶² and 0": entry(shape=[2**62, 4, 0]),
    "a shape of half numbers": entry(shape=[0.5, 64]),
    "another shape": entry(shape=[64, 96]),
    "another kind of number": entry(dtype="F16"),
    "a kind of number that is none": entry(dtype="F7"),
    "a kind of another size": entry(dtype="F32"),
    "offsets behind the end": entry(data_offsets=[10**9, 10**9 + 12288]),
    "offsets that overlap": entry(data_offsets=[0, 12288]),
    "offsets backwards": entry(data_offsets=[12288, 0]),
    "negative offsets": entry(data_offsets=[-12288, 0]),
    "an entry that is null": header(lambda entries: entries.update({"x": None})),
    "an entry that is a list": header(lambda entries: entries.update({"x": []})),
    "metadata of numbers": header(lambda entries: entries.update({"__metadata__": {"format": 7}})),
    "a name with an order": header(lambda entries: entries.update({"\x1b[2J[red]": {"dtype": "F7"}})),
    "a million entries": header(lambda entries: entries.update({f"x{n}": None for n in range(200_000)})),
}

FITTING = ("another kind of number", "another shape")
"""Of these, what no header shows."""

TENSORS: dict[str, Harm] = {
    "NaN in an MLP": fill(UP, torch.nan),
    "infinity in an MLP": fill(UP, torch.inf),
    "NaN in attention": fill("layers.0.self_attn.q_proj", torch.nan),
    "NaN in the vision tower": fill("vision_tower", torch.nan),
    "NaN in the connector": fill("linear_1.weight", torch.nan),
    "NaN in the head": fill("lm_head", torch.nan),
    "one row less": shape(UP, lambda tensor: tensor[1:]),
    "one dimension more": shape(UP, lambda tensor: tensor[None]),
    "no dimension": shape(UP, lambda tensor: tensor.sum()),
    "nothing in it": shape(UP, lambda tensor: tensor[:0]),
    "transposed": shape(UP, lambda tensor: tensor.T),
    "another name": rename("up_proj", "upward"),
    "a name with an order": rename("up_proj", "\x1b[2J[red]:smile:"),
    "a missing layer": tensors(_drop_layer),
    "no tensor at all": tensors(dict.clear),
    "whole numbers": shape(UP, lambda tensor: tensor.to(torch.int32)),
    "bytes": shape(UP, lambda tensor: tensor.to(torch.uint8)),
    "bits": shape(UP, lambda tensor: tensor > 0),
    "complex numbers": shape(UP, lambda tensor: tensor.to(torch.complex64)),
}

SCALES: tuple[str, ...] = (
    *("weight_scale", "weight_scale_inv", "input_scale", "weight_scale_2", "weight_zero_point", "weight_packed"),
    *("weight_shape", "qweight", "qzeros", "scales", "g_idx", "absmax", "SCB", "weight.absmax", "weight.quant_map"),
    *("weight_qdata", "weight.scale", "scale", "biases", "weight_blocks", "weight_scales", "codes", "codebooks", "W_q"),
    *("w_scale", "act_scale", "weights_scaling_factor", "pre_quant_scale", "channel_scale", "lut", "trellis", "meta"),
)
"""What quantization puts beside a weight; the last line under names that nobody has told chip."""
CODES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32, torch.bool)


def beside(name: str, value: torch.Tensor) -> Harm:
    """One more tensor in the module of a weight."""

    def change(content: Tensors) -> None:
        content[called(UP, content).removesuffix("weight") + name] = value

    return tensors(change)


INDEX = "ckpt/model.safetensors.index.json"
INDEXES: dict[str, str] = {
    "null": '{"weight_map": null}',
    "a list": '{"weight_map": []}',
    "a shard that is not there": '{"weight_map": {"a": "none.safetensors"}}',
    "a shard elsewhere": '{"weight_map": {"a": "../records.jsonl"}}',
    "an absolute shard": '{"weight_map": {"a": "/etc/passwd"}}',
    "a device": '{"weight_map": {"a": "/dev/zero"}}',
    "a number": '{"weight_map": {"a": 7}}',
    "itself": '{"weight_map": {"a": "model.safetensors.index.json"}}',
    "an order": '{"weight_map": {"a": "\\u001b[2J[red]"}}',
}

CASES: list[Case] = [
    *(refused(name, harm, AT, INSPECT) for name, harm in HEADERS.items() if name not in FITTING),
    *(either(name, HEADERS[name], AT, EDIT) for name in FITTING),
    *(either(name, harm, AT, DIFF) for name, harm in ((n, other(h)) for n, h in list(HEADERS.items())[4:18])),
    *(refused(name, harm, "") for name, harm in TENSORS.items()),
    *(
        passes(f"{name}, beside the whole", other(harm), DIFF)
        for name, harm in TENSORS.items()
        if "NaN" not in name and name not in ("no tensor at all", "complex numbers")
    ),
    *(
        refused(f"{name} beside a weight, {kind}", beside(name, value), "quantized|like its own", INSPECT)
        for name in SCALES
        for kind, value in (("a number", torch.ones(())), ("codes", torch.ones(96, 8, dtype=torch.uint8)))
    ),
    *(
        refused(f"{part} stored as {dtype}", shape(part, partial(torch.Tensor.to, dtype=dtype)), "codes", INSPECT)
        for part in (UP, "lm_head", "embed_tokens", "input_layernorm", "linear_1.weight", "vision_tower")
        for dtype in CODES
    ),
    *(
        refused(f"a file called {name}", write(f"ckpt/{name}", "{}"), "quantized", INSPECT)
        for name in (
            *("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json"),
            *("QUANTIZE_CONFIG.json", "quant_strategy.json", "quanto_qmap.json", "awq_config.json", "gptq.JSON"),
        )
    ),
    *(
        refused(f"beside a weight: {name}", beside(name, torch.ones(96, 1)), "quantized|like its own", INSPECT)
        for name in ("weight_quantizer._amax", "parametrizations.weight.original0", "weight_g", "oft_R.default")
    ),
    *(
        refused(f"config.json: {key}", put("ckpt/config.json", key, {"bits": 4}), "quantized", INSPECT)
        for key in ("quantization_config", "compression_config", "quantization", "text_config.quantization_config")
    ),
    *(
        refused(f"an index: {name}", both(write(INDEX, text), remove(FILE)), AT, INSPECT)
        for name, text in INDEXES.items()
    ),
    *(refused(f"its first {share:.0%}", shorten(FILE, share), AT) for share in (0, 0.001, 0.5, 0.999)),
    refused("64 GB of nothing", sparse(FILE, 64 << 30), AT, INSPECT),
    refused("no weights", remove(FILE), AT, INSPECT),
    refused("a pickle", both(remove(FILE), write("ckpt/pytorch_model.bin", b"\x80\x04K\x07.")), AT, INSPECT),
    either("weights twice", lambda f: shutil.copy(f / FILE, f / "ckpt/second.safetensors"), AT),
]
