"""How quantized weights are stored, and what they are as numbers; read by the libraries that wrote them where these do
so on a CPU."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from chip.checkpoint.config_checks import edit_the_base, find_scheme
from chip.checkpoint.layout import CONFIG, Checkpoint
from chip.checkpoint.paths import input_error, quoted
from chip.model.packed_codes import awq_weight, gptq_weight

_INSTALL = "pip install 'chip-unlearning[quantized]'"


@dataclass(frozen=True)
class Format:
    """One way to store quantized weights. What belongs to one weight begins with the same name."""

    words: str
    """What it is called."""
    markers: tuple[str, ...]
    """Ends of names, by which a quantized weight is known."""
    others: tuple[str, ...]
    """Ends of names of what else belongs to one."""
    read: Callable[[str, Mapping[str, Tensor]], Tensor]
    """From the common name and the tensors by their ends, to the weight: (d_out, d_in), floating-point."""
    weight: str = ".weight"
    """How the dequantized weight's name ends."""
    unused: str = "(?!)"
    """Regular expression of what dequantized weights have no use for: scales of activations and caches."""
    package: str | None = None
    """The library that is needed."""

    def weights(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        """Name of each quantized weight, once it is dequantized -> the names of its parts, by their ends."""
        commons = {name.removesuffix(end) for name in names for end in self.markers if name.endswith(end)}
        ends = (*self.markers, *self.others)
        return {
            common + self.weight: {end: common + end for end in ends if common + end in names}
            for common in sorted(commons)
        }

    def dequantize(self, common: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight; raises what the library raises where the parts do not make one."""
        return self.read(common, tensors)

    def leaves_out(self, name: str) -> bool:
        """Whether a tensor that is no part of a weight has no place in the plain checkpoint."""
        return re.search(self.unused, name) is not None


def find_format(checkpoint: Checkpoint) -> Format:
    """The format that `config.json` says the weights are in.

    Raises:
        InputError: chip does not read it, or the library for it is missing; with the name of the unquantized model,
            where one is known.
    """
    scheme = find_scheme(checkpoint.config)
    hint = edit_the_base(checkpoint.folder, checkpoint.config)
    method = _method(scheme) if isinstance(scheme, dict) else "?"
    if method not in _FORMATS:
        what = f"the weights are quantized ({quoted(method)}), in a form that chip does not read"
        raise input_error(checkpoint.folder / CONFIG, what, hint)
    try:
        form = _FORMATS[method](scheme)
    except (ValueError, TypeError) as error:
        what = f"the weights are quantized ({quoted(method)}), in a form that chip does not read: {error}"
        raise input_error(checkpoint.folder / CONFIG, what, hint) from error
    if form.package is not None and find_spec(form.package) is None:
        what = f"the weights are quantized ({form.words}), and {form.package} is needed to read them"
        raise input_error(checkpoint.folder / CONFIG, what, f"{_INSTALL}; or {hint}")
    return form


def _method(scheme: Mapping[str, Any]) -> str:
    if scheme.get("load_in_4bit") or scheme.get("load_in_8bit"):  # old files have nothing else
        return "bitsandbytes"
    return str(scheme.get("quant_method", "?")).lower()


def _bitsandbytes(scheme: Mapping[str, Any]) -> Format:
    return _bitsandbytes_8() if scheme.get("load_in_8bit") else _bitsandbytes_4(scheme)


def _bitsandbytes_4(scheme: Mapping[str, Any]) -> Format:
    """Two codes of four bits a byte, a scale a block of them; the scales may be quantized themselves."""
    kind = scheme.get("bnb_4bit_quant_type", "fp4")
    if kind not in ("nf4", "fp4"):
        raise ValueError(f"{kind!r}")

    def read(common: str, parts: Mapping[str, Tensor]) -> Tensor:
        library = _bitsandbytes_functions()
        stored = {end.removeprefix(".weight."): value for end, value in parts.items() if end != ".weight"}
        state = library.QuantState.from_dict(stored, torch.device("cpu"))
        state.dtype = torch.float32  # else it rounds on some machines otherwise than on others
        weight: Tensor = library.dequantize_4bit(parts[".weight"], state)
        return weight

    return Format(
        f"bitsandbytes, 4 bits ({kind})",
        (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"),
        (".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map"),
        read,
        package="bitsandbytes",
    )


def _bitsandbytes_8() -> Format:
    """LLM.int8: a scale a row."""

    def read(common: str, parts: Mapping[str, Tensor]) -> Tensor:
        if parts.get(".weight_format", torch.zeros(())).any():
            raise ValueError("its codes are in the order of an old GPU kernel")
        weight: Tensor = _bitsandbytes_functions().int8_vectorwise_dequant(parts[".weight"], parts[".SCB"])
        return weight

    return Format("bitsandbytes, 8 bits", (".SCB",), (".weight", ".weight_format"), read, package="bitsandbytes")


def _bitsandbytes_functions() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a kernel that nothing here would use
    return import_module("bitsandbytes.functional")


def _fp8(scheme: Mapping[str, Any]) -> Format:
    """A scale a block of `weight_block_size`, smaller ones at the ends; or one for all."""
    size = scheme.get("weight_block_size")

    def read(common: str, parts: Mapping[str, Tensor]) -> Tensor:
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize

        weight, scale = parts[""], parts["_scale_inv"]
        if not weight.is_floating_point():
            raise ValueError(f"codes of {weight.dtype}")
        rows, columns = weight.shape[-2:]
        if size is not None and scale.dim() > 1:
            # transformers divides the weight evenly among the scales: the blocks at the ends are made whole for it
            weight = torch.nn.functional.pad(weight.float(), (0, -columns % size[1], 0, -rows % size[0]))
            if (grid := (weight.shape[-2] // size[0], weight.shape[-1] // size[1])) != tuple(scale.shape[-2:]):
                raise ValueError(f"{tuple(scale.shape)} scales for blocks of {size}, which are {grid}")
        exact = scale if scale.dtype == torch.uint8 else scale.float()  # else rounded to the dtype of the scales
        made: Tensor = Fp8Dequantize(None).convert({"weight": weight, "weight_scale_inv": exact})["weight"]
        return made[..., :rows, :columns]

    unused = r"\.(activation|input)_scale$"
    return Format("fp8", ("_scale_inv",), ("",), read, weight="", unused=unused)


def _compressed_tensors(scheme: Mapping[str, Any]) -> Format:
    """Codes of 8 bits as they are, or of fewer bits packed; scales of channels, groups, blocks or the tensor."""
    if (sparsity := scheme.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise ValueError(f"sparse, {sparsity['format']!r}")
    if not re.fullmatch("[a-z0-9-]+", stored_as := str(scheme.get("format"))):
        raise ValueError(repr(stored_as))

    @cache
    def groups() -> Sequence[Any]:
        from compressed_tensors.quantization import QuantizationConfig

        return list(QuantizationConfig.model_validate(scheme).config_groups.values())

    def read(common: str, parts: Mapping[str, Tensor]) -> Tensor:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.compressors.format import infer_module_format
        from compressed_tensors.config import CompressionFormat
        from compressed_tensors.utils.match import match_name

        named = [group for group in groups() if any(match_name(common, target) for target in group.targets)]
        linear = [group for group in groups() if "Linear" in group.targets]
        if ".weight_g_idx" in parts:
            raise ValueError("its columns are in another order")
        group = next(iter((*named, *linear)), None)
        if group is None:
            raise ValueError("it is in no group of the configuration")
        stored = CompressionFormat(group.format or stored_as)
        if stored is CompressionFormat.mixed_precision:
            stored = infer_module_format(torch.nn.Linear, group)
        local = {end.removeprefix("."): value for end, value in parts.items()}
        local["weight_scale"] = local["weight_scale"].float()  # else the product is rounded to the dtype of the scales
        decompressed: Tensor = BaseCompressor.get_value_from_registry(stored.value).decompress(local, group)["weight"]
        return decompressed

    return Format(
        f"compressed-tensors, {stored_as}",
        (".weight_scale",),
        (".weight", ".weight_packed", ".weight_zero_point", ".weight_global_scale", ".weight_shape", ".weight_g_idx"),
        read,
        unused=r"\.(((input|output)_(scale|zero_point|global_scale))|[qkv]_(scale|zero_point))$",
        package="compressed_tensors",
    )


def _gptq(scheme: Mapping[str, Any]) -> Format:
    stored = scheme.get("checkpoint_format", "gptq")
    if stored not in ("gptq", "gptq_v2"):
        raise ValueError(f"checkpoint_format {stored!r}")
    bits, shift = int(scheme.get("bits", 4)), int(stored == "gptq")

    def read(common: str, parts: Mapping[str, Tensor]) -> Tensor:
        return gptq_weight(parts[".qweight"], parts[".qzeros"], parts[".scales"], parts.get(".g_idx"), bits, shift)

    return Format(f"GPTQ, {bits} bits", (".qweight",), (".qzeros", ".scales", ".g_idx"), read)


def _awq(scheme: Mapping[str, Any]) -> Format:
    bits, version = int(scheme.get("bits", scheme.get("w_bit", 4))), str(scheme.get("version", "gemm")).lower()
    if version != "gemm" or bits != 4:
        raise ValueError(f"version {version!r} of {bits} bits")

    def read(common: str, parts: Mapping[str, Tensor]) -> Tensor:
        return awq_weight(parts[".qweight"], parts.get(".qzeros"), parts[".scales"])

    return Format("AWQ, 4 bits", (".qweight",), (".qzeros", ".scales"), read)


_FORMATS: Mapping[str, Callable[[Mapping[str, Any]], Format]] = {
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "awq": _awq,
}
"""By `quant_method`."""
