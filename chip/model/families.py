"""All that chip knows about families of models: where their parts are, and which of their settings matter.

Most families need no row here: transformers names the text model and the vision tower, and the rest is found by
structure. A family in which that goes wrong gets one row in `FAMILIES`, and nothing anywhere else.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from chip.errors import InputError
from chip.model.structure import attends, contains, ends_in, is_tower, linear_maps, parts_behind

TEXT_MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Kind of target module -> its path in a layer of most text models, in the order of data."""

OTHER_PATHS: dict[str, tuple[str, ...]] = {
    "o": ("self_attn.out_proj", "self_attn.dense"),
    "gate": ("feed_forward.gate_proj", "feed_forward.w1"),
    "up": ("feed_forward.up_proj", "feed_forward.w3", "mlp.fc1"),
    "down": ("feed_forward.down_proj", "feed_forward.w2", "mlp.fc2"),
}
"""Where the same lie in other text models: Phi, LFM2, Llama 4. Layers of one model may differ."""

VISION_MODULES = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "qkv": "qkv",
    "o_proj": "o",
    "out_proj": "o",
    "projection_layer": "o",
    "proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "linear_fc1": "fc1",
    "linear_fc2": "fc2",
}
"""Last part of a linear layer's name in a layer of a vision tower -> its kind, in the order of data; other names are
their own kinds."""


@dataclass(frozen=True)
class Family:
    """Where a family keeps what chip needs. Each default holds for most families, and None stands for structure.

    Paths are those of modules below the whole model, as in `named_modules()`.
    """

    text_model: str | None = None
    """The text model, with its `layers`. None: what `get_decoder()` names."""
    vision_tower: str | None = None
    """The vision tower. None: what `get_encoder(modality="image")` names."""
    connectors: tuple[str, ...] | None = None
    """What turns the tower's hidden states into embeddings of the text model. None: what stands beside the two, or the
    parts of the tower behind its layers that end in the text model's width."""
    text_modules: Mapping[str, str] | None = None
    """Kind -> path in a layer of the text model. None: as in `TEXT_MODULES`, else in `OTHER_PATHS`."""
    cross_attention: bool = False
    """Whether layers of the text model look at images from the side, and one token stands for a whole image."""
    image_token_id: str = "image_token_id"
    """Setting of the configuration: the token that stands for a piece of an image."""
    max_tokens: str = "max_position_embeddings"
    """Setting of the text model's configuration: how many tokens it takes."""
    logit_softcapping: str = "final_logit_softcapping"
    """Setting of the text model's configuration: the bound of the logits behind the head, as Gemma 2 has it."""
    same_size_images: bool | None = None
    """Whether all images of a batch must have one size: such a family cuts off, behind the connector, what padded an
    image, and the size says how many tokens stay. None: where the configuration has `image_grid_pinpoints`."""
    padded_images: bool = False
    """Whether the connector sees images one behind the other, each filled up to the longest, and drops that later."""
    answer_is_suffix: bool = False
    """Whether, without a chat template, the processor itself puts image and question before the answer, its suffix, and
    the tokens before the answer see each other in both directions."""
    takes_embeddings_apart: bool = False
    """Whether its code takes the table of embeddings itself, beside looking tokens up in it."""


FAMILIES: dict[str, Family] = {
    "lfm2_vl": Family(padded_images=True),
    "mllama": Family(cross_attention=True),
    "paligemma": Family(answer_is_suffix=True),  # its processor takes question and answer apart, without a template
    "gemma4": Family(takes_embeddings_apart=True),
    "llama4": Family(takes_embeddings_apart=True),
}
"""`model_type` of the configuration -> what structure would get wrong in this family."""

ORIGINAL_LAYOUTS = {
    "InternVLChatModel": ("internvl", "InternVL"),
    "LlavaMistralForCausalLM": ("llava", "LLaVA-Med and LLaVA 1.6"),
    "LlavaLlamaForCausalLM": ("llava", "LLaVA"),
    "LlavaQwenForCausalLM": ("llava_onevision", "LLaVA-OneVision"),
}
"""Class that a checkpoint in its authors' own layout names -> transformers' name of the family, and its own name."""

EXPERT_OUTPUTS = ("down_proj", "fc2", "w2")
"""How the last map of an expert is called, whether a parameter of all experts or a linear layer of a shared one."""

_CROSS_ATTENTION = re.compile(r"(cross|encoder)_?attn|(cross|encoder)_?attention")
"""Parts of a decoder's layers that look at something beside the sequence."""
_OTHER_PURPOSE = re.compile(r"(^|_)(audio|video|speech|sound|generation|vq|high_res|action)")
"""In names of parts that are there for something else than the image."""
TOKEN_INPUTS = frozenset(
    ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids", "position_ids")
)
"""What a processor gives for each token of the text. Another input may have the same shape: a mask of patches."""
SHARED_STATES = "shared_kv_states"
"""A layer's argument: a mapping that it fills for later layers, in families whose layers share keys and values."""


def family_of(model: Any) -> Family:
    """What is known about the model's family; for most that is the default."""
    return FAMILIES.get(model.config.model_type, Family())


def find_language(model: Any) -> Any:
    """The text model, with its `layers`: embeddings in, hidden states out.

    Raises:
        InputError: transformers names none, or it has no layers, or they look at images from the side.
    """
    path = family_of(model).text_model
    text = _named(model, "text model", "get_decoder") if path is None else _at(model, "text model", path)
    text = text if hasattr(text, "layers") else base_model(text)  # Llama 4's has the head
    layers = getattr(text, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise _unknown(model, "text model with layers")
    looks_aside = any(_CROSS_ATTENTION.search(name) for name, _ in text.named_modules())
    if looks_aside and not family_of(model).cross_attention:
        what = "its text model takes images by cross-attention, and not as tokens"
        raise InputError(f"{type(model).__name__}: {what}; chip does not know such families yet")
    return text


def find_causal(model: Any) -> Any:
    """What gives logits: the model itself; where its text model has the head, as in Llama 4, that."""
    decoder = model.get_decoder()
    return decoder if decoder is not base_model(decoder) and decoder.get_output_embeddings() is not None else model


def find_tower(model: Any) -> Any:
    """The vision tower: images in, hidden states out.

    Raises:
        InputError: transformers names none.
    """
    path = family_of(model).vision_tower
    if path is not None:
        return _at(model, "vision tower", path)
    return _named(model, "vision tower", "get_encoder", modality="image")


def find_connectors(model: Any) -> list[Any]:
    """The modules that turn the vision tower's hidden states into embeddings of the text model.

    They stand beside the tower and the text model. Where nothing does, they are parts of the tower behind its layers
    that end in the text model's width: the merger of Qwen-VL, and those that feed its first layers directly.

    Raises:
        InputError: there are none.
    """
    find_language(model)
    tower, paths = find_tower(model), family_of(model).connectors
    if paths is not None:
        return [_at(model, "vision-language connector", path) for path in paths]
    connectors = [part for name, part in _beside(model).items() if not _has_other_purpose(model, name, part)]
    if not connectors:
        width, layers = model.config.get_text_config().hidden_size, find_tower_layers(model)
        connectors = [part for part in parts_behind(tower, layers) if ends_in(part, width)]
    if not connectors:
        raise _unknown(model, "vision-language connector")
    return connectors


def other_parts(model: Any) -> list[str]:
    """Paths of what stands beside the text model and its vision tower and is no connector between them: towers for
    audio, video or a second look at an image, and what makes images or sound. An edit does not reach it."""
    connectors, name_of = find_connectors(model), {module: name for name, module in model.named_modules()}
    return [name_of[part] for part in _beside(model).values() if part not in connectors]


def find_tower_layers(model: Any) -> list[Any]:
    """The layers of the vision tower: those of its lists whose members attend."""
    lists = [module for module in find_tower(model).modules() if isinstance(module, nn.ModuleList)]
    return [layer for layers in lists for layer in layers if attends(layer)]


def has_layer_embeddings(model: Any) -> bool:
    """Whether the text model makes more of its embeddings than the first layer's hidden states (Gemma 3n and 4)."""
    text = find_language(model)
    usual = (text.layers, text.get_input_embeddings())
    return any(True for child in text.children() if child not in usual for _ in linear_maps(child))


def text_modules(model: Any) -> Mapping[str, tuple[str, ...]]:
    """Kind of target module -> where it may lie in a layer of the text model; kinds are in the order of data."""
    if (stated := family_of(model).text_modules) is not None:
        return {kind: (path,) for kind, path in stated.items()}
    return {kind: (path, *OTHER_PATHS.get(kind, ())) for kind, path in TEXT_MODULES.items()}


def base_model(model: Any) -> Any:
    """The model without its head: what holds the tower, the connectors and the text model. Llama 4 has none apart."""
    return getattr(model, "model", model)


def position_inputs(model: Any) -> tuple[str, ...]:
    """What the family's `get_rope_index` takes: Qwen gives a token three numbers for its position. Else nothing."""
    index = getattr(base_model(model), "get_rope_index", None)
    return () if index is None else tuple(inspect.signature(index).parameters)


def image_token_id(model: Any) -> int:
    """The vocabulary id of the token that stands for a piece of an image."""
    return _whole_number(model.config, family_of(model).image_token_id)


def max_tokens(model: Any) -> int:
    """How many tokens the text model takes."""
    return _whole_number(model.config.get_text_config(), family_of(model).max_tokens)


def sliding_window(model: Any) -> int | None:
    """How many tokens back the layers with the shortest view see; None: all layers see all."""
    config = model.config.get_text_config()
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    window: int | None = config.sliding_window if windowed else None
    return window


def logit_softcapping(model: Any) -> float | None:
    """The bound that the family keeps logits within, behind the head: c tanh(logits / c); None: there is none."""
    bound: float | None = getattr(model.config.get_text_config(), family_of(model).logit_softcapping, None)
    return bound


def same_size_images(model: Any) -> bool:
    """Whether all images of a batch must have one size."""
    stated = family_of(model).same_size_images
    return hasattr(model.config, "image_grid_pinpoints") if stated is None else stated


def answer_is_suffix(model: Any) -> bool:
    """Whether the family needs no chat template: its processor takes the answer as a suffix."""
    return family_of(model).answer_is_suffix


def _whole_number(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise InputError(f"{config.model_type}: {name!r} is {value!r} in its configuration; give a whole number there")
    return value


def _at(model: Any, what: str, path: str) -> Any:
    if path not in dict(model.named_modules()):
        raise _unknown(model, what)
    return model.get_submodule(path)


def _named(model: Any, what: str, getter: str, **arguments: Any) -> Any:
    """The part of the model that transformers itself names."""
    try:
        part = getattr(model, getter)(**arguments)
    except (AttributeError, NotImplementedError):  # of a few families, which have other parts
        part = None
    if part is None or part in (model, base_model(model)):
        raise _unknown(model, what)
    return part


def _unknown(model: Any, what: str) -> InputError:
    return InputError(f"{type(model).__name__}: no {what} found in it; chip does not know this family yet")


def _beside(model: Any) -> dict[str, Any]:
    """What has linear maps beside the text model and the vision tower, by name."""
    known = (find_language(model), find_tower(model))
    parts = base_model(model).named_children()
    return {name: part for name, part in parts if not contains(part, known) and any(True for _ in linear_maps(part))}


def _has_other_purpose(model: Any, name: str, part: nn.Module) -> bool:
    """Whether a part beside the two is a tower of its own, from pixels or waves on, or not there for the image."""
    return is_tower(part) or part is model.get_encoder(modality="audio") or _OTHER_PURPOSE.search(name) is not None
