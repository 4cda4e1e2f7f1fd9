"""Tiny random checkpoints of any type that `AutoModelForImageTextToText` loads: its own defaults, made small.

For types without a recipe of their own. Pictures become inputs by what the model's forward takes, and how many tokens
one is, is what the model itself makes of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.families import END, IM_TOKENS, SEED, VOCABULARY, Family, _im_chat, _tokenizer
from tests.further_families import pixels_of

WIDTH, LAYERS, EXPERTS, SIDE, PATCH = 32, 2, 4, 28, 7
_SMALL: dict[str, int] = (
    dict.fromkeys(
        ("hidden_size", "d_model", "embed_dim", "out_hidden_size", "projection_dim", "output_channels"), WIDTH
    )
    | dict.fromkeys(("text_hidden_size", "projector_hidden_size", "mlp_hidden_size"), WIDTH)
    | dict.fromkeys(("intermediate_size", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim", "mlp_dim"), 48)
    | dict.fromkeys(("num_hidden_layers", "num_layers", "depth", "layers", "encoder_layers", "decoder_layers"), LAYERS)
    | dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "num_key_value_heads"), 2)
    | dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_experts_per_tok"), 2)
    | dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), EXPERTS)
    | dict.fromkeys(("head_dim", "v_head_dim", "moe_intermediate_size", "shared_expert_intermediate_size"), 16)
    | dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16)
    | dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 8)
    | dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1)
    | {"vocab_size": VOCABULARY, "max_position_embeddings": 512, "num_position_embeddings": 64}
    | {"image_size": SIDE, "patch_size": PATCH, "resampler_n_latents": 4}
)
"""Setting -> what it is made at most, wherever it stands."""
SECTIONS = [4, 2, 2]  # of a head's frequencies
_GIVEN: dict[str, Any] = {
    "mrope_section": SECTIONS,
    "deepstack_visual_indexes": [0],
    "projector_patch_to_query_dict": {(SIDE // PATCH) ** 2: 4},
}
"""Setting -> what it is made, whatever it was."""
_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers", "moe_layers")
"""Settings with one entry a layer, of which the first and the last stay."""

IMAGE, VIDEO, START, STOP = "<image>", "<video>", "<start>", "<stop>"
TOKENS = {
    "image_token_id": IMAGE,
    "image_token_index": IMAGE,
    "video_token_id": VIDEO,
    "video_token_index": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": STOP,
    "image_start_token_id": START,
    "image_end_token_id": STOP,
}
BASE = Family(
    "",
    config={},
    image_processor={},
    token_ids={"image_token_id": IMAGE},
    tokens={},
    more_tokens=(IMAGE, VIDEO, START, STOP, *IM_TOKENS),
    chat=_im_chat(f"{START}{IMAGE}{STOP}"),
    end="<|im_end|>",
)


def shrink(config: Mapping[Any, Any]) -> dict[Any, Any]:
    """The same settings, made small."""
    return {name: _shrunk(name, value) for name, value in config.items()}


def _shrunk(name: Any, value: Any) -> Any:
    if name in _GIVEN:
        return _GIVEN[name]
    if isinstance(value, dict):
        return shrink(value)
    if name in _SMALL and isinstance(value, int) and not isinstance(value, bool):
        return min(_SMALL[name], value)
    if name in _LISTS and isinstance(value, list | tuple):
        return [*value[:1], *value[-1:]]
    if name in TOKENS:
        return BASE.id_of(TOKENS[name])
    if str(name).endswith(("_token_id", "_token_index")) and isinstance(value, int):
        return value % VOCABULARY
    return value


def small_model(model_type: str) -> PreTrainedModel:
    """A model of the type with random weights, fp32; the same weights at every call."""
    default = AutoConfig.for_model(model_type)
    config = type(default).from_dict(shrink(default.to_dict()))
    for part in (config, config.get_text_config()):
        part.bos_token_id, part.eos_token_id, part.pad_token_id = 1, BASE.id_of(BASE.end), 0
    if not hasattr(config, "vision_start_token_id"):  # Omni's part says it in its checkpoints, and not by default
        config.vision_start_token_id = BASE.id_of(START)
    rope = getattr(config.get_text_config(), "rope_parameters", None)
    if rope is not None and "image_grid_thw" in _forward_of(config):
        rope["mrope_section"] = SECTIONS
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.default_generator.manual_seed(SEED)
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def _forward_of(config: Any) -> Mapping[str, Any]:
    """The arguments of the forward of the type's class."""
    return inspect.signature(AutoModelForImageTextToText._model_mapping[type(config)].forward).parameters


def build_shrunk(folder: Path, model_type: str) -> Family:
    """Write a small checkpoint of the type; what stands in for its processor."""
    model = small_model(model_type)
    model.to(torch.bfloat16).save_pretrained(folder)
    _tokenizer(BASE).save_pretrained(folder)
    types = "mm_token_type_ids" in _forward_of(model.config)
    return replace(BASE, see=_see(model.float()), token_types=types)


def _see(model: PreTrainedModel) -> Callable[[Sequence[Image.Image]], tuple[dict[str, torch.Tensor], list[int]]]:
    makes = _grid if "image_grid_thw" in _forward_of(model.config) else _square

    @torch.no_grad()
    def see(images: Sequence[Image.Image]) -> tuple[dict[str, torch.Tensor], list[int]]:
        each = [makes(model, image) for image in images]
        inputs = {name: torch.cat([one[name] for one in each]) for name in each[0]}
        features = [
            getattr(model, "model", model).get_image_features(**one, return_dict=True).pooler_output for one in each
        ]
        counts = [
            sum(part.flatten(0, -2).shape[0] for part in (f if isinstance(f, list | tuple) else [f])) for f in features
        ]
        return inputs, counts

    return see


def _square(model: PreTrainedModel, image: Image.Image) -> dict[str, torch.Tensor]:
    size = getattr(model.config.vision_config, "image_size", SIDE)
    side = size if isinstance(size, int) else size[0]
    pixels, asked = (
        pixels_of([image], side, side),
        inspect.signature(getattr(model, "model", model).get_image_features).parameters,
    )
    if model.config.model_type == "granite_docling":
        return {"pixel_values": pixels[:, None], "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}
    sizes = {"image_sizes": torch.tensor([[side, side]])} if "image_sizes" in asked else {}
    return {"pixel_values": pixels, **sizes}


def _grid(model: PreTrainedModel, image: Image.Image) -> dict[str, torch.Tensor]:
    """Patches, 4 by 4 or 4 by 8, those that become one token together."""
    vision = model.config.vision_config
    times = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", None) or 1
    patch, is_flat = vision.patch_size, model.config.model_type not in ("paddleocr_vl", "kimi_k25")
    rows, columns = 4, 4 if image.width == image.height else 8
    squares = pixels_of([image], columns * patch, rows * patch)[0].unfold(1, patch, patch).unfold(2, patch, patch)
    flat = squares[:, :, :, None].expand(-1, -1, -1, times, -1, -1)  # (3, rows, columns, times, patch, patch)
    patches = flat.permute(1, 2, 0, 3, 4, 5).reshape(
        rows * columns, -1 if is_flat else 3, *[patch, patch][is_flat * 2 :]
    )
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, columns]])}


__all__ = ["END", "build_shrunk"]
