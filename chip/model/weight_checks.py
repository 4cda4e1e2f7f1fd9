"""Are the tensors on disk the weights of the model that is loaded? Told by names, shapes and dtypes before it is built.

transformers draws at random what is missing, leaves out what it has no place for, and casts stored codes to numbers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from math import prod

from torch import nn
from transformers import PreTrainedModel

from chip.checkpoint.config_checks import UNQUANTIZED
from chip.checkpoint.header import FLOATS
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.paths import counted, input_error, listed, quoted
from chip.model.load_plan import LoadPlan, plan_loading

_QUANTIZED = re.compile(
    r"[._:](q?weight_(scale|zero_point|packed|shape|format|scale_inv|scale_2|global_scale)|scales?|scale_inv|biases"
    r"|(input|output|k|v|q|attn)_scale|qweight|qzeros|zeros|g_idx|absmax|nested_absmax|quant_map|nested_quant_map|SCB"
    r"|quant_state\.\w+|qdata|W_q|codes|codebooks|input_(global_)?scale|activation_scale|\w+_(blocks|scales|scale_inv))$"
)
"""How quantization ends the names of what it puts beside a weight, or in its place."""
_QUANTIZER = re.compile(r"_quantizer\.")
"""In names of what ModelOpt keeps of a weight or of activations."""
_ADAPTER = re.compile(
    r"(^|\.)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer|modules_to_save|original_module)\."
)
"""Parts of names by which PEFT keeps an adapter beside the weights."""
_DRAFTS = re.compile(r"(^|[._])(mtp|nextn|eagle|medusa)([._]|$)")
"""Parts of names of layers that predict several tokens at once, and that the model answers without."""
_LAYER = re.compile(r"[^.]+\.\d+\..+$")
"""From the first numbered layer on."""


def check_weights(checkpoint: Checkpoint, model: PreTrainedModel) -> LoadPlan:
    """Check that the checkpoint's tensors are the weights of `model`, which may be on the meta device.

    Returns:
        What loading makes of each tensor.

    Raises:
        InputError: weights are quantized, or stored as other than floating-point numbers, without a word in
            `config.json`; an adapter that is not merged; parameters without a tensor, or with one of another shape, or
            with two; tensors that look like the model's own, and that it has no place for.
    """
    plan = plan_loading(checkpoint, model)
    _check_extra_files(checkpoint, model)
    _check_quantized(checkpoint, model, plan)
    _check_merged(checkpoint, plan)
    _check_complete(checkpoint, model, plan)
    _check_shapes(checkpoint, model, plan)
    _check_left_out(checkpoint, model, plan)
    return plan


def _check_extra_files(checkpoint: Checkpoint, model: PreTrainedModel) -> None:
    for name in getattr(type(model.config), "extra_files", ()):
        if (checkpoint.folder / name).exists():
            what = f"{type(model).__name__} loads {quoted(name)} too, which an edit does not reach"
            raise input_error(checkpoint.folder, what, "chip does not know this family yet")


def _check_quantized(checkpoint: Checkpoint, model: PreTrainedModel, plan: LoadPlan) -> None:
    if leftovers := [name for name in plan.unexpected if _is_leftover(name, checkpoint, model, plan)]:
        what = f"quantized, which config.json does not say: {counted(leftovers, 'tensor')} like {listed(leftovers)}"
        raise input_error(checkpoint.folder, what, UNQUANTIZED)
    expected = model.state_dict()
    for name, target in plan.taken.items():
        dtype = checkpoint.entries[name].dtype
        if expected[target].is_floating_point() and dtype not in FLOATS:
            what = f"tensor {quoted(name)} is stored as {dtype}, codes that would be loaded as the numbers they are"
            raise input_error(checkpoint.folder, what, UNQUANTIZED)


def _is_leftover(name: str, checkpoint: Checkpoint, model: PreTrainedModel, plan: LoadPlan) -> bool:
    """Whether a tensor that is not loaded belongs to a quantized weight: of a module of the model, or of the folder.

    By its name, or as a number or codes beside the weight of a linear map, which has no use for these.
    """
    entry, renamed, entries = checkpoint.entries[name], plan.unexpected[name], checkpoint.entries
    if _QUANTIZER.search(name):
        return True
    if ending := _QUANTIZED.search(name):
        weight = name[: ending.start()]
        own = _belongs(renamed.removesuffix(ending[0]) + ".weight", model)
        if own or weight in entries or f"{weight}.weight" in entries or entry.dtype not in FLOATS:
            return True
    is_scale = prod(entry.shape) < 2 or entry.dtype not in FLOATS
    return is_scale and _is_linear(renamed.rpartition(".")[0], model)


def _is_linear(path: str, model: PreTrainedModel) -> bool:
    try:
        return isinstance(model.get_submodule(path), nn.Linear)
    except AttributeError:
        return False


def _check_merged(checkpoint: Checkpoint, plan: LoadPlan) -> None:
    if adapters := [name for name in plan.unexpected if _ADAPTER.search(name)]:
        what = f"{counted(adapters, 'tensor')} of an adapter, not merged into the weights ({listed(adapters)})"
        raise input_error(checkpoint.folder, what, "merge it into its model first (peft: merge_and_unload)")


def _check_complete(checkpoint: Checkpoint, model: PreTrainedModel, plan: LoadPlan) -> None:
    if not plan.missing:
        return
    what = f"{counted(plan.missing, 'parameter')} of {type(model).__name__} without a tensor ({listed(plan.missing)})"
    others = [name for name in plan.unexpected if name not in plan.ignored]
    if others:
        what = f"{what}, and {counted(others, 'tensor')} for which it has no place ({listed(others)})"
        hint = "this is another architecture, or another layout: convert it to the one of transformers"
    else:
        hint = "they would be drawn at random; fetch the checkpoint again"
    raise input_error(checkpoint.folder, what, hint)


def _check_shapes(checkpoint: Checkpoint, model: PreTrainedModel, plan: LoadPlan) -> None:
    expected, sources = model.state_dict(), defaultdict(list)
    for name, target in plan.taken.items():
        shape = tuple(expected[target].shape)
        if name in plan.converted:  # the shape is that of the whole
            continue
        if checkpoint.entries[name].shape != shape:
            what = f"tensor {quoted(name)} has the shape {checkpoint.entries[name].shape}, and should have {shape}"
            raise input_error(checkpoint.folder, what, "config.json and the weights are not of one model")
        sources[target].append(name)
    for target, names in sources.items():
        if len(names) > 1:
            what = f"parameter {quoted(target)} has {counted(names, 'tensor')} ({listed(names)})"
            raise input_error(checkpoint.folder, what, "leave one of them")


def _check_left_out(checkpoint: Checkpoint, model: PreTrainedModel, plan: LoadPlan) -> None:
    known = {(_tail(name), tuple(value.shape)) for name, value in model.state_dict().items()}
    if own := [name for name in plan.unexpected if _looks_own(name, checkpoint, model, plan, known)]:
        what = f"{counted(own, 'tensor')} like its own, which {type(model).__name__} has no place for ({listed(own)})"
        raise input_error(checkpoint.folder, what, "take the config.json of these weights, or leave these tensors out")


def _looks_own(
    name: str, checkpoint: Checkpoint, model: PreTrainedModel, plan: LoadPlan, known: set[tuple[str, tuple[int, ...]]]
) -> bool:
    """Whether a tensor that is not loaded looks as if it should be: by the place its name has in the model, or as a
    copy of a parameter under a longer name. `known`: the ends of parameters' names, and their shapes."""
    entry, renamed = checkpoint.entries[name], plan.unexpected[name]
    if name in plan.ignored or _DRAFTS.search(name) or entry.dtype not in FLOATS or prod(entry.shape) < 2:
        return False
    return _belongs(renamed, model) or (_tail(renamed) != renamed and (_tail(renamed), entry.shape) in known)


def _belongs(name: str, model: PreTrainedModel) -> bool:
    """Whether the name is one more parameter of a module that there is, or lies below one that holds nothing but
    parameters, or in a layer more than there are."""
    module: nn.Module = model
    for part in name.split(".")[:-1]:
        children = dict(module.named_children())
        if part not in children:
            is_layer = isinstance(module, nn.ModuleList | nn.Sequential) and part.isdigit()
            return is_layer or (not children and _has_parameters(module))
        module = children[part]
    return _has_parameters(module)


def _has_parameters(module: nn.Module) -> bool:
    """Of its own."""
    return any(True for _ in module.parameters(recurse=False))


def _tail(name: str) -> str:
    """The name from the first list of layers on, `layers.0.mlp.down_proj.weight`; all of it where there is no layer."""
    match = _LAYER.search(name)
    return name if match is None else match[0]
