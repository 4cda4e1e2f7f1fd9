"""Weights as each format stores them, written out by numpy from what its authors say of the layout, and as numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chip.checkpoint.layout import Checkpoint

Parts = dict[str, Tensor]
"""By the ends of their names."""

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
NF4 += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
NF4 += [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
FP4 = [0.0, 0.0052083333, 0.6666667, 1.0, 0.3333333, 0.5, 0.1666667, 0.25]
FP4 += [-value for value in FP4]


@dataclass(frozen=True)
class Stored:
    """A weight in some format."""

    parts: Parts
    value: Tensor
    """(d_out, d_in), as the format defines it, in fp64."""


@dataclass(frozen=True)
class Kind:
    scheme: Mapping[str, Any]
    """`quantization_config`."""
    store: Callable[[Tensor], Stored]
    words: str
    package: str | None = None
    beside: Parts = field(default_factory=dict)
    """What lies beside the parts without a meaning for the weight."""


def pack(codes: np.ndarray, bits: int) -> Tensor:
    """(rows, n) codes -> (rows, n bits / 32) int32: one stream of bits, the lowest first."""
    stream = (codes[..., None].astype(np.uint8) >> np.arange(bits)) & 1
    return torch.from_numpy(np.packbits(stream.reshape(len(codes), -1), axis=1, bitorder="little").view(np.int32))


def draw(shape: tuple[int, ...], bits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, shape)


def grid(weight: Tensor, groups: int, levels: int) -> np.ndarray:
    """(d_out, groups) scales under which `levels` codes reach a weight's largest value."""
    largest = weight.double().abs().reshape(len(weight), groups, -1).amax(2).numpy()
    return (2 * largest / levels + 1e-6).astype(np.float16)


def coded(weight: Tensor, scales: np.ndarray, zeros: np.ndarray, groups: np.ndarray, bits: int) -> np.ndarray:
    """(d_out, d_in) codes; `scales` and `zeros` (d_out, G), `groups` (d_in,)."""
    exact = weight.double().numpy() / scales.astype(np.float64)[:, groups] + zeros[:, groups]
    rounded: np.ndarray = np.clip(np.rint(exact), 0, 2**bits - 1).astype(np.int64)
    return rounded


def gptq(bits: int, shift: int, act_order: bool) -> Callable[[Tensor], Stored]:
    def store(weight: Tensor) -> Stored:
        d_out, d_in = weight.shape
        groups = np.repeat(np.arange(4), d_in // 4)
        if act_order:
            groups = np.random.default_rng(1).permutation(groups)
        scales = grid(weight, 4, 2**bits - 1)
        zeros = draw((d_out, 4), bits - 1, 2) + 2 ** (bits - 2)
        codes = coded(weight, scales, zeros, groups, bits)
        value = scales.astype(np.float64)[:, groups] * (codes - zeros[:, groups])
        parts = {
            ".qweight": pack(codes, bits).T.contiguous(),
            ".qzeros": pack(zeros.T - shift, bits),
            ".scales": torch.from_numpy(scales.T.copy()),
            ".g_idx": torch.from_numpy(groups.astype(np.int32)),
        }
        return Stored(parts, torch.from_numpy(value))

    return store


def awq(weight: Tensor) -> Stored:
    """AutoAWQ packs along the outputs, and has code `order[i]` of eight in place i of a word."""
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    d_out, d_in = weight.shape
    groups, scales, zeros = np.repeat(np.arange(4), d_in // 4), grid(weight, 4, 15), draw((d_out, 4), 4, 3)
    codes = coded(weight, scales, zeros, groups, 4)

    def packed(values: np.ndarray) -> Tensor:
        return pack(values.reshape(len(values), -1, 8)[..., order].reshape(len(values), -1), 4)

    parts = {".qweight": packed(codes.T), ".qzeros": packed(zeros.T), ".scales": torch.from_numpy(scales.T.copy())}
    return Stored(parts, torch.from_numpy(scales.astype(np.float64)[:, groups] * (codes - zeros[:, groups])))


def fp8(size: tuple[int, int] | None) -> Callable[[Tensor], Stored]:
    def store(weight: Tensor) -> Stored:
        rows, columns = weight.shape
        height, width = size or (rows, columns)
        shape = (-(-rows // height), -(-columns // width))
        scale = torch.zeros(shape)
        for i, j in np.ndindex(*shape):
            block = weight[i * height : (i + 1) * height, j * width : (j + 1) * width]
            scale[i, j] = block.abs().max().float() / 448 + 1e-6
        wide = scale.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
        codes = (weight.float() / wide).to(torch.float8_e4m3fn)
        stored = scale if size is not None else scale.reshape(())
        return Stored({".weight": codes, ".weight_scale_inv": stored}, codes.double() * wide.double())

    return store


def int8(weight: Tensor) -> Stored:
    largest = weight.float().abs().amax(1)
    codes = (weight.float() / largest[:, None] * 127).round().to(torch.int8)
    parts = {".weight": codes, ".SCB": largest, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return Stored(parts, codes.double() * largest.double()[:, None] / 127)


def four_bits(kind: str, nested: bool) -> Callable[[Tensor], Stored]:
    levels = NF4 if kind == "nf4" else FP4

    def store(weight: Tensor) -> Stored:
        code, blocks = torch.tensor(levels), weight.float().reshape(-1, 64)
        absmax = blocks.abs().amax(1)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
        parts: Parts = {".weight.quant_map": code}
        if nested:
            table, offset = torch.linspace(-1, 1, 256), absmax.mean()
            largest = (absmax - offset).abs().reshape(-1, 256).amax(1) if len(absmax) % 256 == 0 else None
            assert largest is not None, "a block of 256 scales"
            units = (absmax - offset).reshape(-1, 256) / largest[:, None]
            places = (units.unsqueeze(2) - table).abs().argmin(2).to(torch.uint8)
            absmax = (table[places.long()] * largest[:, None] + offset).reshape(-1)
            parts |= {".weight.absmax": places.reshape(-1), ".weight.nested_absmax": largest}
            parts |= {".weight.nested_quant_map": table}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
        else:
            parts[".weight.absmax"] = absmax
        places = ((blocks / absmax[:, None]).unsqueeze(2) - code).abs().argmin(2)
        value = code.double()[places] * absmax.double()[:, None]
        pairs = places.reshape(-1, 2).to(torch.uint8)
        parts[".weight"] = (pairs[:, 0] << 4 | pairs[:, 1]).reshape(-1, 1)
        text = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
        parts[f".weight.quant_state.bitsandbytes__{kind}"] = text
        return Stored(parts, value.reshape(weight.shape))

    return store


def channel_int8(weight: Tensor) -> Stored:
    scale = (weight.float().abs().amax(1, keepdim=True) / 127).bfloat16()
    codes = (weight.float() / scale.float()).round().clamp(-128, 127).to(torch.int8)
    return Stored({".weight": codes, ".weight_scale": scale}, codes.double() * scale.double())


def channel_fp8(weight: Tensor) -> Stored:
    scale = (weight.float().abs().amax(1, keepdim=True) / 448).bfloat16()
    codes = (weight.float() / scale.float()).to(torch.float8_e4m3fn)
    return Stored({".weight": codes, ".weight_scale": scale}, codes.double() * scale.double())


def packed_4(symmetric: bool) -> Callable[[Tensor], Stored]:
    def store(weight: Tensor) -> Stored:
        groups = np.repeat(np.arange(4), weight.shape[1] // 4)
        scales = grid(weight, 4, 15)
        zeros = np.full(scales.shape, 8) if symmetric else draw(scales.shape, 4, 4)
        codes = coded(weight, scales, zeros, groups, 4)
        parts = {
            ".weight_packed": pack(codes, 4),
            ".weight_scale": torch.from_numpy(scales),
            ".weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            parts[".weight_zero_point"] = pack(zeros.T, 4).T.contiguous()
        return Stored(parts, torch.from_numpy(scales.astype(np.float64)[:, groups] * (codes - zeros[:, groups])))

    return store


def _compressed(form: str, activations: bool = True, **weights: Any) -> dict[str, Any]:
    symmetric = {"symmetric": True} | weights
    inputs = {"num_bits": 8, "type": weights["type"], "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": symmetric, "input_activations": inputs if activations else None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


_OLD = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
_BITS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}

KINDS: Mapping[str, Kind] = {
    "gptq": Kind({"quant_method": "gptq", "bits": 4, "group_size": 32}, gptq(4, 1, False), "GPTQ, 4 bits"),
    "gptq, 3 bits, act-order": Kind(
        {"quant_method": "gptq", "bits": 3, "checkpoint_format": "gptq_v2"}, gptq(3, 0, True), "GPTQ, 3 bits"
    ),
    "gptq, 8 bits": Kind({"quant_method": "gptq", "bits": 8}, gptq(8, 1, True), "GPTQ, 8 bits"),
    "awq": Kind({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, awq, "AWQ, 4 bits"),
    "fp8": Kind(
        {"quant_method": "fp8", "weight_block_size": [48, 40], "activation_scheme": "dynamic"}, fp8((48, 40)), "fp8"
    ),
    "fp8, one scale": Kind(
        {"quant_method": "fp8", "activation_scheme": "static"},
        fp8(None),
        "fp8",
        beside={".activation_scale": torch.ones(())},
    ),
    "nf4": Kind(
        _OLD | {"bnb_4bit_quant_type": "nf4"}, four_bits("nf4", False), "bitsandbytes, 4 bits (nf4)", "bitsandbytes"
    ),
    "nf4, double": Kind(
        _OLD | {"bnb_4bit_quant_type": "nf4"}, four_bits("nf4", True), "bitsandbytes, 4 bits (nf4)", "bitsandbytes"
    ),
    "fp4": Kind(
        _OLD | {"bnb_4bit_quant_type": "fp4"}, four_bits("fp4", False), "bitsandbytes, 4 bits (fp4)", "bitsandbytes"
    ),
    "int8": Kind({"quant_method": "bitsandbytes", "load_in_8bit": True}, int8, "bitsandbytes, 8 bits", "bitsandbytes"),
    "w8a8": Kind(
        _compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
        channel_int8,
        "compressed-tensors, int-quantized",
        "compressed_tensors",
    ),
    "w8a8, fp8": Kind(
        _compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        channel_fp8,
        "compressed-tensors, float-quantized",
        "compressed_tensors",
        {".input_scale": torch.ones(1)},
    ),
    "w4a16": Kind(
        _compressed("pack-quantized", False, **_BITS),
        packed_4(True),
        "compressed-tensors, pack-quantized",
        "compressed_tensors",
    ),
    "w4a16, zeros": Kind(
        _compressed("pack-quantized", False, **_BITS, symmetric=False),
        packed_4(False),
        "compressed-tensors, pack-quantized",
        "compressed_tensors",
    ),
}


def quantized_copy(source: Path, folder: Path, kind: Kind, names: Callable[[str], bool]) -> dict[str, Tensor]:
    """A copy of a checkpoint with the weights of the chosen names quantized, in one file; what each of its tensors is
    once dequantized to bf16."""
    checkpoint = Checkpoint.open(source)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    tensors, expected = {}, {}
    for name in checkpoint.entries:
        value = checkpoint.read(name)
        expected[name] = value
        if not names(name):
            tensors[name] = value
            continue
        stored = kind.store(value.float())
        expected[name] = stored.value.float().bfloat16()
        common = name.removesuffix(".weight")
        tensors |= {common + end: part.clone() for end, part in (stored.parts | kind.beside).items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": dict(kind.scheme)}))
    return expected


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All of a checkpoint's tensors, as the safetensors library reads them."""
    return {name: value for shard in checkpoint.shards for name, value in load_file(checkpoint.folder / shard).items()}
