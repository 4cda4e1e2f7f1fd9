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
    | dict.fromkeys(("text_hidden_size", "projector_hidden_size", "projection_hidden_size"), WIDTH)
    | dict.fromkeys(("mlp_hidden_size", "moe_hidden_size", "adapter_in_dim", "adapter_out_dim"), WIDTH)
    | {"adapter_input_size": WIDTH}
    | dict.fromkeys(("intermediate_size", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim", "mlp_dim"), 48)
    | dict.fromkeys(("num_hidden_layers", "num_layers", "depth", "layers", "encoder_layers", "decoder_layers"), LAYERS)
    | dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "num_key_value_heads"), 2)
    | dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_experts_per_tok", "moe_k"), 2)
    | dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), EXPERTS)
    | dict.fromkeys(("head_dim", "v_head_dim", "moe_intermediate_size", "shared_expert_intermediate_size"), 16)
    | dict.fromkeys(("q_lora_rank", "kv_lora_rank", "index_head_dim", "swa_head_dim"), 16)
    | dict.fromkeys(("index_n_heads", "swa_num_attention_heads", "swa_num_key_value_heads", "linear_num_heads"), 2)
    | dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8)
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    | dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 8)
    | dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1)
    | {"vocab_size": VOCABULARY, "unpadded_vocab_size": VOCABULARY}
    | {"max_position_embeddings": 512, "num_position_embeddings": 64}
    | {"image_size": SIDE, "patch_size": PATCH, "resampler_n_latents": 4}
)
"""Setting -> what it is made at most, wherever it stands."""
SECTIONS = [4, 2, 2]  # of a head's frequencies
_GIVEN: dict[str, Any] = {
    "per_layer_config": {},
    "mrope_section": SECTIONS,
    "deepstack_visual_indexes": [0],
    "projector_patch_to_query_dict": {(SIDE // PATCH) ** 2: 4},
}
"""Setting -> what it is made, whatever it was."""
_LISTS = (
    *("layer_types", "mlp_layer_types", "no_rope_layers", "moe_layers", "indexer_types", "layer_rope_theta"),
    *("patch_sizes", "hidden_sizes", "depths"),
)
"""Settings with one entry a layer, of which the first and the last stay."""

_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
_SAM: dict[str, Any] = {"image_size": 112, "window_size": 4, "global_attn_indexes": [1], "output_channels": 16}
TOGETHER: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 3}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _ROPE | {"mrope_section": SECTIONS}}}},
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense", "sparse"],
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
        },
        "vision_config": {"sam_config": _SAM | {"downsample_channels": [16, WIDTH]}},
    },
    "diffusion_gemma": {
        "text_config": {
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
            "per_layer_config": {"1": {"head_dim": 16}},
        }
    },
    "dots3_note": {
        "text_config": {
            "layer_types": ["indexed_attention", "sliding_attention"],
            "per_layer_config": {"1": {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 8}},
        },
        "vision_config": {"per_layer_config": None},
    },
    "emu3": {"vocabulary_map": {"<image>": 3}},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 4]}}},
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [1, 1, 1, 1],
        "image_grid_pinpoints": [[SIDE, SIDE]],
        "vision_config": {"hidden_size": 64},  # a head of the downsampler has 64
        "qformer_config": {"hidden_size": 64, "encoder_hidden_size": 64},
    },
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "hy_v4_vl": {"text_config": {"qk_rope_head_dim": 16}},
    "glm5_next": {"text_config": {"layer_types": ["indexed_attention", "linear_attention"]}},
    "kimi_k25": {"text_config": {"head_dim": 8}},
    "mistral_large4": {"text_config": {"kv_source_layers": [0, 1]}},
    **{
        name: {"insert_layer_id": 0, "vision_config": {"insert_layer_id": 0}}
        for name in ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7")
    },
    "molmo2": {
        "vision_config": {"image_size": [SIDE, SIDE], "num_position_embeddings": (SIDE // PATCH) ** 2},
        "adapter_config": {"vision_feature_layer": [1, 0]},
        "text_config": {"rope_scaling_layers": [0, 1], "additional_vocab_size": 0},
    },
    "muse_glimmer": {"out_hidden_size": 4 * WIDTH},
    "muse_spark": {"out_hidden_size": 4 * WIDTH, "audio_config": {"hidden_sizes": [16, 16]}},
    "qwen4_exp": {
        "text_config": {
            "hc_lowrank": 8,
            "ngram_vocab_size_base": 512,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 512,
            "indexer_compress_ratio": 4,
        }
    },
    "step3p7": {"text_config": {"sliding_window": 256}},
    "unlimited_ocr": {"vision_config": {"sam_config": _SAM | {"downsample_channels": [16, WIDTH]}}},
}
"""Type -> sizes that its defaults lack, or that go together."""

IMAGE, VIDEO, START, STOP = "<image>", "<video>", "<start>", "<stop>"
TOKENS = {
    "image_token_id": IMAGE,
    "image_token_index": IMAGE,
    "image_patch_id": IMAGE,
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


def _with(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with changes in them, also in those of its parts."""
    parts = {name: _with(config.get(name) or {}, own) for name, own in changes.items() if isinstance(own, dict)}
    return {**config, **changes, **parts}


def default_config(model_type: str, small: bool = False) -> Any:
    """The type's own defaults, with what they lack; `small`: made small."""
    default = AutoConfig.for_model(model_type)
    settings = shrink(default.to_dict()) if small else default.to_dict()
    return type(default).from_dict(_with(settings, TOGETHER.get(model_type, {})))


def small_model(model_type: str) -> PreTrainedModel:
    """A model of the type with random weights, fp32; the same weights at every call."""
    config = default_config(model_type, small=True)
    for part in (config, config.get_text_config()):
        part.bos_token_id, part.eos_token_id, part.pad_token_id = 1, BASE.id_of(BASE.end), 0
    if not hasattr(config, "vision_start_token_id"):  # Omni's part says it in its checkpoints, and not by default
        config.vision_start_token_id = BASE.id_of(START)
    rope = getattr(config.get_text_config(), "rope_parameters", None)
    if rope and not any(isinstance(own, dict) for own in rope.values()) and "image_grid_thw" in _forward_of(config):
        rope.setdefault("mrope_section", SECTIONS)
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
    asked = _forward_of(model.config)
    makes = next((makes for name, makes in _KINDS.items() if name in asked), _square)

    @torch.no_grad()
    def see(images: Sequence[Image.Image]) -> tuple[dict[str, torch.Tensor], list[int]]:
        each = [makes(model, image) for image in images]
        core = getattr(model, "model", model)
        taken = set(inspect.signature(core.get_image_features).parameters)
        counts = []
        for one in each:
            own = {name: value for name, value in one.items() if name in taken}
            output = core.get_image_features(**own, return_dict=True)
            features = output.pooler_output
            if features is None:  # one for each of several layers, all as long
                features = output.deepstack_features[0][1]
            parts = features if isinstance(features, list | tuple) else [features]
            counts.append(sum(part.flatten(0, -2).shape[0] for part in parts))
        return _joined(each), counts

    return see


def _joined(each: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What several images become together; patches that stand in one line go on with the line."""
    line = "target_sizes" in each[0]
    joined = {name: torch.cat([one[name] for one in each], -line * (name == "pixel_values")) for name in each[0]}
    if "image_token_pooling" in joined:  # places among the patches of all
        patches = [one["pixel_values"][..., 0].numel() for one in each]
        starts = [sum(patches[:number]) for number in range(len(patches))]
        places = [one["image_token_pooling"] + start for one, start in zip(each, starts, strict=True)]
        joined["image_token_pooling"] = torch.cat(places)
    return joined


def _square(model: PreTrainedModel, image: Image.Image) -> dict[str, torch.Tensor]:
    vision = model.config.vision_config
    size = getattr(getattr(vision, "sam_config", vision), "image_size", SIDE)
    side = size if isinstance(size, int) else size[0]
    pixels, asked = (
        pixels_of([image], side, side),
        inspect.signature(getattr(model, "model", model).get_image_features).parameters,
    )
    if model.config.model_type == "granite_docling":
        return {"pixel_values": pixels[:, None], "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}
    if model.config.model_type == "granite4_vision":  # the whole, and one tile
        pixels = pixels[:, None].expand(-1, 2, -1, -1, -1)
    sizes = {"image_sizes": torch.tensor([[side, side]])} if "image_sizes" in asked else {}
    return {"pixel_values": pixels, **sizes}


def _line(model: PreTrainedModel, image: Image.Image) -> dict[str, torch.Tensor]:
    """Patches in one line, 8 by 8 or 8 by 16."""
    patch = model.config.vision_config.patch_size
    rows, columns = 8, 8 if image.width == image.height else 16
    squares = pixels_of([image], columns * patch, rows * patch)[0].unfold(1, patch, patch).unfold(2, patch, patch)
    line = squares.permute(0, 3, 1, 2, 4).reshape(1, 3, patch, -1)  # (1, 3, patch, rows columns patch)
    return {"pixel_values": line, "target_sizes": torch.tensor([[rows, columns]], dtype=torch.int32)}


def _crops(model: PreTrainedModel, image: Image.Image) -> dict[str, torch.Tensor]:
    """Patches of one crop, and which of them become a token together: 2 by 2."""
    patch, side = model.config.vision_config.patch_size, model.config.vision_config.image_size[0]
    squares = pixels_of([image], side, side)[0].unfold(1, patch, patch).unfold(2, patch, patch)
    places = torch.arange((side // patch) ** 2).view(side // patch, -1).unfold(0, 2, 2).unfold(1, 2, 2)
    return {
        "pixel_values": squares.permute(1, 2, 3, 4, 0).reshape(1, -1, 3 * patch**2),
        "image_token_pooling": places.reshape(-1, 4),
        "image_grids": torch.tensor([[*places.shape[:2], 0, 0]]),
        "image_num_crops": torch.tensor([1]),
    }


def _grid(model: PreTrainedModel, image: Image.Image) -> dict[str, torch.Tensor]:
    """Patches, 4 by 4 or 4 by 8, those that become one token together."""
    vision = model.config.vision_config
    times = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", None) or 1
    patch, is_flat = vision.patch_size, model.config.model_type not in ("paddleocr_vl", "kimi_k25")
    rows, columns = 4, 4 if image.width == image.height else 8
    if model.config.model_type in ("inkling2", "inkling2_loop"):  # squares of what becomes one token
        side, pixels = 2 * patch, pixels_of([image], columns * patch, rows * patch)[0]
        whole = pixels.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 3, 4, 0)
        return {"pixel_values": whole.flatten(0, 1), "image_grid_thw": torch.tensor([[1, rows // 2, columns // 2]])}
    squares = pixels_of([image], columns * patch, rows * patch)[0].unfold(1, patch, patch).unfold(2, patch, patch)
    flat = squares[:, :, :, None].expand(-1, -1, -1, times, -1, -1)  # (3, rows, columns, times, patch, patch)
    patches = flat.permute(1, 2, 0, 3, 4, 5).reshape(
        rows * columns, -1 if is_flat else 3, *[patch, patch][is_flat * 2 :]
    )
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, columns]])}


_KINDS = {"image_grid_thw": _grid, "target_sizes": _line, "image_token_pooling": _crops}
"""Argument of a model's forward -> what makes its inputs of an image; without one of these, a square."""

__all__ = ["END", "build_shrunk"]
