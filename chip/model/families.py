"""All that chip knows about families of models: where their parts are, and which of their settings matter.

Most families need no row here: transformers names the text model and the vision tower, and the rest is found by
structure. A family in which that goes wrong gets one row in `FAMILIES`, and nothing anywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from chip.errors import InputError

TEXT_MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Kind of target module -> its path in a layer of the text model, in the order of data."""

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
    parts of the tower that end in the text model's width."""
    text_modules: Mapping[str, str] | None = None
    """Kind -> path in a layer of the text model. None: `TEXT_MODULES`."""
    image_token_id: str = "image_token_id"
    """Setting of the configuration: the token that stands for a piece of an image."""
    max_tokens: str = "max_position_embeddings"
    """Setting of the text model's configuration: how many tokens it takes."""
    logit_softcapping: str = "final_logit_softcapping"
    """Setting of the text model's configuration: the bound of the logits behind the head, as Gemma 2 has it."""
    same_size_images: bool | None = None
    """Whether all images of a batch must have one size: such a family cuts off, behind the connector, what padded an
    image, and the size says how many tokens stay. None: where the configuration has `image_grid_pinpoints`."""
    position_inputs: tuple[str, ...] = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    """What `get_rope_index` takes, in families that have it: Qwen gives a token three numbers for its position."""
    answer_is_suffix: bool = False
    """Whether, without a chat template, the processor itself puts image and question before the answer, its suffix, and
    the tokens before the answer see each other in both directions."""
    takes_embeddings_apart: bool = False
    """Whether its code takes the table of embeddings itself, beside looking tokens up in it: it must then be there."""


FAMILIES: dict[str, Family] = {
    # Its processor takes question and answer apart, and there is no chat template.
    "paligemma": Family(answer_is_suffix=True),
    # Layers that get embeddings of their own, and ids that are moved to where the table is.
    "gemma4": Family(takes_embeddings_apart=True),
    "llama4": Family(takes_embeddings_apart=True),
}
"""`model_type` of the configuration -> what structure would get wrong in this family."""

_CROSS_ATTENTION = re.compile(r"(cross|encoder)_?attn|(cross|encoder)_?attention")
"""Parts of a decoder's layers that look at something beside the sequence."""
_OTHER_PURPOSE = re.compile(r"(^|_)(audio|video|speech|sound|generation|vq|high_res|action)")
"""In names of parts that are there for something else than the image."""
_WEIGHT = ("weight", "proj")
"""How the names of parameters end that are multiplied with."""
SHARED_STATES = "shared_kv_states"
"""A layer's argument: a mapping that it fills for later layers, in families whose layers share keys and values."""

UNNEEDED_PROCESSOR = "video_processor"
"""The part of a processor that is left out where it asks for a package that is missing."""


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
    layers = getattr(text, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise _unknown(model, "text model with layers")
    if any(_CROSS_ATTENTION.search(name) for name, _ in text.named_modules()):
        what = "its text model takes images by cross-attention, and not as tokens"
        raise InputError(f"{type(model).__name__}: {what}; chip does not know such families yet")
    return text


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

    They stand beside the tower and the text model. Where nothing does, they are the parts of the tower, its layers
    apart, that end in the text model's width: the merger of Qwen-VL, and those that feed its first layers directly.

    Raises:
        InputError: there are none.
    """
    find_language(model)
    tower, paths = find_tower(model), family_of(model).connectors
    if paths is not None:
        return [_at(model, "vision-language connector", path) for path in paths]
    connectors = [part for name, part in _beside(model).items() if not _has_other_purpose(model, name, part)]
    if not connectors:
        width = model.config.get_text_config().hidden_size
        connectors = [part for part in _parts(tower) if _ends_in(part, width)]
    if not connectors:
        raise _unknown(model, "vision-language connector")
    return connectors


def other_parts(model: Any) -> list[str]:
    """Paths of what stands beside the text model and its vision tower and is no connector between them: towers for
    audio, video or a second look at an image, and what makes images or sound. An edit does not reach it."""
    connectors = find_connectors(model)
    return [f"model.{name}" for name, part in _beside(model).items() if part not in connectors]


def find_tower_layers(model: Any) -> list[Any]:
    """The layers of the vision tower: those of its lists whose members attend."""
    lists = [module for module in find_tower(model).modules() if isinstance(module, nn.ModuleList)]
    return [layer for layers in lists for layer in layers if _attends(layer)]


def has_layer_embeddings(model: Any) -> bool:
    """Whether the text model makes more of its embeddings than the first layer's hidden states (Gemma 3n and 4)."""
    text = find_language(model)
    usual = (text.layers, text.get_input_embeddings())
    return any(True for child in text.children() if child not in usual for _ in linear_maps(child))


def text_modules(model: Any) -> Mapping[str, str]:
    """Kind of target module -> its path in a layer of the text model, in the order of data."""
    return family_of(model).text_modules or TEXT_MODULES


def linear_maps(module: nn.Module) -> Iterator[tuple[str, bool, bool]]:
    """Linear maps in `module`: name below it, whether it has a bias, whether it is a parameter without a module.

    Not those in torch's own attention, which takes its parameters past its modules, and not the queries, latents and
    positions that a model learns: these are tables, whatever their shape.
    """
    attention = [f"{name}." for name, inner in module.named_modules() if isinstance(inner, nn.MultiheadAttention)]
    for name, inner in module.named_modules():
        if f"{name}.".startswith(tuple(attention)):
            continue
        if isinstance(inner, nn.Linear):
            yield name, inner.bias is not None, False
        elif not isinstance(inner, nn.Embedding):
            for own, parameter in inner.named_parameters(recurse=False):
                if parameter.dim() == 2 and own.endswith(_WEIGHT):
                    yield f"{name}.{own}".lstrip("."), False, True


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
    part = getattr(model, getter)(**arguments) if hasattr(model, "model") else None
    if part is None or part in (model, model.model):
        raise _unknown(model, what)
    return part


def _unknown(model: Any, what: str) -> InputError:
    return InputError(f"{type(model).__name__}: no {what} found in it; chip does not know this family yet")


def _beside(model: Any) -> dict[str, Any]:
    """What has linear maps beside the text model and the vision tower, by name."""
    known = (find_language(model), find_tower(model))
    return {n: part for n, part in model.model.named_children() if part not in known and list(linear_maps(part))}


def _has_other_purpose(model: Any, name: str, part: nn.Module) -> bool:
    """Whether a part beside the two is a tower of its own, from pixels or waves on, or not there for the image."""
    convolves = any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in part.modules())
    is_tower = (convolves and _attends(part)) or part is model.get_encoder(modality="audio")
    return is_tower or _OTHER_PURPOSE.search(name) is not None


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The children, those of a list one by one."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else (child,)


def _ends_in(part: nn.Module, width: int) -> bool:
    linear = [module for module in part.modules() if isinstance(module, nn.Linear)]
    return bool(linear) and linear[-1].out_features == width and not _attends(part)


def _attends(part: nn.Module) -> bool:
    return any("attn" in name or "attention" in name for name, _ in part.named_modules())
