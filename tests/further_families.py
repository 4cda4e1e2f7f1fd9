"""Tiny random checkpoints of more types that `AutoModelForImageTextToText` loads, as in `tests.families`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.families import (
    BEGIN,
    BEYOND_HIDDEN_STATES,
    CLIP,
    END,
    IM_TOKENS,
    IMAGE_TOKEN,
    PINPOINTS,
    QWEN,
    QWEN_ROPE,
    QWEN_VISION,
    RECIPES,
    SIGLIP,
    SQUARE,
    TEXT,
    TEXT_LAYERS,
    TILE,
    VISION,
    VOCABULARY,
    Chat,
    Family,
    _im_chat,
    _qwen_images,
)

EXPERTS: dict[str, Any] = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
INST = Chat("[INST] ", " ", "<image>\n", " [/INST]", END)
LLAMA = TEXT | {"model_type": "llama"}
QWEN2 = TEXT | {"model_type": "qwen2"}


def pixels_of(images: Sequence[Image.Image], width: int = TILE, height: int = TILE) -> torch.Tensor:
    """(N, 3, height, width) between -1 and 1."""
    arrays = [np.asarray(image.convert("RGB").resize((width, height)), dtype=np.float32) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


def _tiles(tokens: int, side: int = TILE, tiled: bool = False) -> Any:
    """Every picture as one square of so many tokens; `tiled`: with a dimension for tiles."""

    def see(images: Sequence[Image.Image]) -> tuple[dict[str, torch.Tensor], list[int]]:
        pixels = pixels_of(images, side, side)
        return {"pixel_values": pixels[:, None] if tiled else pixels}, [tokens] * len(images)

    return see


def _sized(merge: int) -> Any:
    """Pictures of two sizes, padded to the larger, as Pixtral takes them."""

    def see(images: Sequence[Image.Image]) -> tuple[dict[str, torch.Tensor], list[int]]:
        heights = [TILE if image.width != image.height else 2 * TILE for image in images]
        pixels = torch.zeros(len(images), 3, 2 * TILE, 2 * TILE)
        for number, (image, height) in enumerate(zip(images, heights, strict=True)):
            pixels[number, :, :height] = pixels_of([image], 2 * TILE, height)[0]
        sizes = torch.tensor([[height, 2 * TILE] for height in heights])
        return {"pixel_values": pixels, "image_sizes": sizes}, (sizes // (14 * merge)).prod(1).tolist()

    return see


def _patches(images: Sequence[Image.Image]) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Patches of pictures of two sizes, padded to the larger, as Siglip 2 takes them; four patches are a token."""
    most = (2 * TILE // 7) * (TILE // 7)
    pixels, mask = torch.zeros(len(images), most, 3 * 7 * 7), torch.zeros(len(images), most, dtype=torch.int32)
    shapes = []
    for number, image in enumerate(images):
        width = TILE if image.width == image.height else 2 * TILE
        squares = pixels_of([image], width, TILE)[0].unfold(1, 7, 7).unfold(2, 7, 7)  # (3, rows, columns, 7, 7)
        patches = squares.permute(1, 2, 3, 4, 0).flatten(2).flatten(0, 1)
        pixels[number, : len(patches)], mask[number, : len(patches)] = patches, 1
        shapes.append((TILE // 7, width // 7))
    inputs = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(shapes)}
    return inputs, [height * width // 4 for height, width in shapes]


PIXTRAL = VISION | {"model_type": "pixtral", "image_size": 2 * TILE, "patch_size": 14, "head_dim": 16}
PIXTRAL_TOKENS: dict[str, Any] = {
    "token_ids": {"image_token_index": "[IMG]"},  # its processor asks for torchvision
    "tokens": {"image_token": "[IMG]"},
    "more_tokens": ("[IMG_BREAK]", "[IMG_END]"),
    "processor_class": "PixtralProcessor",
    "chat": replace(INST, image="[IMG]"),
    "begins": True,
}
GLM_VISION: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": TEXT["hidden_size"],
    "image_size": 56,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "initializer_range": 0.1,
}
GLM_TEXT = TEXT | {"rope_parameters": QWEN_ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}}
GLM: dict[str, Any] = {
    "image_processor": _qwen_images(patch_size=14) | {"image_processor_type": "Glm4vImageProcessor"},
    "token_ids": {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    },
    "tokens": {},
    "more_tokens": (
        *("<|user|>", "<|assistant|>", "<|image|>", "<|video|>"),
        *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    ),
    "processor_class": "Glm4vProcessor",
    "chat": Chat("<|user|>\n", "<|assistant|>\n", "<|begin_of_image|><|image|><|end_of_image|>", "", "<|user|>"),
    "end": "<|user|>",
}
AYA: dict[str, Any] = {
    "token_ids": {"image_token_index": "<|IMG_PATCH|>"},
    "tokens": {},
    "more_tokens": (
        *("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"),
        *("<|START|>", "<|END|>"),
    ),
    "chat": Chat("<|START|>user", "<|START|>bot", "<image>", "<|END|>", "<|END|>", begin=BEGIN),
    "end": "<|END|>",
    "begins": True,
    "tied": True,
}
DEEPSEEK: dict[str, Any] = {
    "token_ids": {"image_token_id": "<image_placeholder>"},
    "tokens": {"image_token": "<image_placeholder>"},
    "processor": {"num_image_tokens": 16},
    "chat": Chat("User: ", "Assistant: ", "<image_placeholder>", "\n\n", END),
    "begins": True,
}
COHERE = TEXT | {"model_type": "cohere2", "sliding_window": 256, "layer_types": None}


def _with_text(name: str, text: dict[str, Any], **changes: Any) -> Family:
    """Another family with other settings of its text model."""
    recipe = (RECIPES | BEYOND_HIDDEN_STATES)[name]
    config = recipe.config | {"text_config": recipe.config["text_config"] | text}
    return replace(recipe, config=config, **changes)


MOE: dict[str, Any] = {"num_experts": 4, "moe_intermediate_size": 24}
NO_SHARING: dict[str, Any] = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}

FURTHER: dict[str, Family] = {
    "qwen3_vl_moe": _with_text("qwen3_vl", EXPERTS | MOE, classes="Qwen3VLMoe", processor_class="Qwen3VLProcessor"),
    "qwen3_5_moe": _with_text("qwen3_5", EXPERTS | MOE | {"shared_expert_intermediate_size": 24}, classes="Qwen3_5Moe"),
    "gemma4_dense": _with_text("gemma4", NO_SHARING),
    "gemma4_moe": _with_text("gemma4", NO_SHARING | MOE | {"enable_moe_block": True, "top_k_experts": 2}),
    "mistral3": Family(
        "Mistral3",
        config={
            "text_config": TEXT | {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
            "vision_config": PIXTRAL,
            "spatial_merge_size": 2,
            "vision_feature_layer": -1,
        },
        image_processor={},
        see=_sized(merge=2),
        **PIXTRAL_TOKENS,
    ),
    "pixtral": Family(
        "Llava",
        config={
            "text_config": TEXT | {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
            "vision_config": PIXTRAL,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        image_processor={},
        see=_sized(merge=1),
        **PIXTRAL_TOKENS,
    ),
    "mllama": Family(
        "Mllama",
        config={
            "text_config": TEXT | {"cross_attention_layers": [1, 3]},
            "vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 2,
                "intermediate_size": 48,
                "vision_output_dim": 64,
                "image_size": TILE,
                "patch_size": 14,
                "max_num_tiles": 2,
                "intermediate_layers_indices": [1],
                "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
                "initializer_range": 0.1,
            },
        },
        image_processor={"image_processor_type": "MllamaImageProcessor", "size": SQUARE, "max_image_tiles": 2},
        token_ids={"image_token_index": "<|image|>"},
        tokens={"image_token": "<|image|>"},
        more_tokens=("<|python_tag|>", "<|eot_id|>"),
        chat=Chat("user\n", "assistant\n", "<|image|>", "<|eot_id|>", "<|eot_id|>", begin=BEGIN),
        end="<|eot_id|>",
        begins=True,
    ),
    "glm4v": Family("Glm4v", config={"text_config": GLM_TEXT, "vision_config": GLM_VISION}, **GLM),
    "glm4v_moe": Family(
        "Glm4vMoe",
        config={
            "text_config": GLM_TEXT
            | EXPERTS
            | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 16},
            "vision_config": GLM_VISION,
        },
        **GLM,
    ),
    "aya_vision": Family(
        "AyaVision",
        config={"text_config": COHERE, "vision_config": SIGLIP | {"patch_size": 7}, "downsample_factor": 2},
        image_processor=RECIPES["internvl"].image_processor,
        processor={"patch_size": 14, "img_size": TILE, "downsample_factor": 1},
        **AYA,
    ),
    "llava_phi": _with_text("llava", {"model_type": "phi"}),
    "llava_phi3": _with_text("llava", {"model_type": "phi3"}),
    "idefics2": Family(
        "Idefics2",
        config={
            "text_config": TEXT | {"model_type": "mistral", "sliding_window": None},
            "vision_config": VISION | {"image_size": 2 * TILE, "patch_size": 14},
            "perceiver_config": {
                "hidden_size": TEXT["hidden_size"],
                "resampler_n_latents": 4,
                "resampler_depth": 2,
                "resampler_n_heads": 4,
                "num_key_value_heads": 2,
                "resampler_head_dim": 16,
                "initializer_range": 0.1,
            },
        },
        image_processor={
            "image_processor_type": "Idefics2ImageProcessor",
            "do_image_splitting": False,
            "size": {"shortest_edge": TILE, "longest_edge": 2 * TILE},
        },
        token_ids={"image_token_id": "<image>"},
        tokens={},
        more_tokens=("<image>", "<fake_token_around_image>", "<end_of_utterance>"),
        processor={"image_seq_len": 4},
        chat=Chat("User:", "Assistant:", "<image>", "<end_of_utterance>\n", "<end_of_utterance>\n", begin=BEGIN),
        end="<end_of_utterance>",
        begins=True,
    ),
    "deepseek_vl": Family(
        "DeepseekVL",
        config={"text_config": LLAMA, "vision_config": SIGLIP | {"patch_size": 7}},
        image_processor={"image_processor_type": "DeepseekVLImageProcessor", "size": SQUARE, "min_size": 14},
        **DEEPSEEK,
    ),
    "deepseek_vl_hybrid": Family(
        "DeepseekVLHybrid",
        config={
            "text_config": LLAMA,
            "vision_config": SIGLIP | {"patch_size": 7},
            "high_res_vision_config": {
                "model_type": "sam_vision_model",
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "mlp_dim": 24,
                "output_channels": 16,
                "image_size": 64,
                "patch_size": 4,
                "window_size": 4,
                "global_attn_indexes": [1],
                "initializer_range": 0.1,
            },
        },
        image_processor={
            "image_processor_type": "DeepseekVLHybridImageProcessor",
            "size": SQUARE,
            "high_res_size": {"height": 64, "width": 64},
            "min_size": 14,
        },
        **DEEPSEEK,
    ),
    "video_llama_3": Family(
        "VideoLlama3",
        config={"text_config": QWEN2, "vision_config": VISION | {"patch_size": 14}},
        image_processor={
            "image_processor_type": "VideoLlama3ImageProcessor",
            "size": {"shortest_edge": 4 * 14**2, "longest_edge": 9 * 14**2},
            "patch_size": 14,
            "temporal_patch_size": 1,
            "merge_size": 1,
        },
        token_ids={"image_token_id": "<image>", "video_token_id": "<video>"},
        tokens=IMAGE_TOKEN | {"video_token": "<video>"},
        more_tokens=IM_TOKENS,
        chat=_im_chat("<image>\n"),
        end="<|im_end|>",
    ),
    "llava_next_video": replace(
        RECIPES["llava_next"],
        classes="LlavaNextVideo",
        config=RECIPES["llava_next"].config | {"text_config": LLAMA, "image_grid_pinpoints": PINPOINTS},
        token_ids={"image_token_index": "<image>", "video_token_index": "<video>"},
        tokens=IMAGE_TOKEN | {"video_token": "<video>"},
    ),
    "ovis2": Family(
        "Ovis2",
        config={
            "text_config": QWEN2,
            "vision_config": VISION
            | {
                "image_size": TILE,
                "patch_size": 7,
                "hidden_stride": 2,
                "vocab_size": 48,
                "num_visual_indicator_tokens": 5,
            },
            "hidden_size": TEXT["hidden_size"],
            "vocab_size": VOCABULARY,
            "visual_indicator_token_ids": [5, 6, 7, 8, 9],
        },
        image_processor={
            "image_processor_type": "Ovis2ImageProcessor",
            "size": SQUARE,
            "crop_to_patches": True,
            "max_patches": 2,
            "min_patches": 1,
        },
        token_ids={"image_token_id": "<IMG_ATOM>"},
        tokens={},
        more_tokens=(
            *("<image>", "<IMG_ATOM>"),
            *("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
            *IM_TOKENS,
        ),
        processor={"image_seq_length": 4},
        chat=_im_chat("<image>\n"),
        end="<|im_end|>",
    ),
    "llama4": Family(
        "Llama4",
        config={
            "text_config": TEXT
            | {
                "head_dim": 16,
                "intermediate_size_mlp": 96,
                "num_local_experts": 4,
                "interleave_moe_layer_step": 2,
                "attention_chunk_size": 512,
            },
            "vision_config": VISION
            | {
                "image_size": 56,
                "patch_size": 14,
                "vision_output_dim": 48,
                "projector_input_dim": 48,
                "projector_output_dim": 48,
                "intermediate_size": 128,  # what the pixel shuffle gives
            },
        },
        image_processor={},
        token_ids={"image_token_index": "<|patch|>"},
        tokens={},
        more_tokens=("<|patch|>", "<|header|>", "<|eot|>"),
        chat=Chat("<|header|>user", "<|header|>assistant", "<|patch|>", "<|eot|>", "<|eot|>", begin=BEGIN),
        end="<|eot|>",
        begins=True,
        see=_tiles(tokens=4, side=56),
    ),
    "cohere2_vision": Family(
        "Cohere2Vision",
        config={
            "text_config": COHERE,
            "vision_config": SIGLIP | {"patch_size": 7},
            "downsample_factor": 2,
            "alignment_intermediate_size": 96,
        },
        image_processor={},
        **AYA | {"token_ids": {"image_token_id": "<image>"}},
        see=_tiles(tokens=4),
    ),
    "lfm2_vl": Family(
        "Lfm2Vl",
        config={
            "text_config": TEXT
            | {
                "model_type": "lfm2",
                "block_multiple_of": 8,
                "layer_types": ["conv", "full_attention"] * (TEXT_LAYERS // 2),
            },
            "vision_config": VISION
            | {"model_type": "siglip2_vision_model", "patch_size": 7, "num_patches": 64, "vision_use_head": False},
            "projector_hidden_size": 48,
        },
        image_processor={},
        token_ids={"image_token_id": "<image>"},
        tokens=IMAGE_TOKEN,
        more_tokens=IM_TOKENS,
        chat=_im_chat("<image>"),
        end="<|im_end|>",
        tied=True,
        see=_patches,
    ),
    "perception_lm": Family(
        "PerceptionLM",
        config={
            "text_config": LLAMA,
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_core_large_patch14_336",
                "do_pooling": False,
                "num_classes": 0,
                "global_pool": "",
                "initializer_range": 0.1,
                "model_args": {
                    "embed_dim": 32,
                    "depth": 2,
                    "num_heads": 2,
                    "img_size": [TILE, TILE],
                    "use_post_transformer_norm": False,
                    "init_values": 0.1,
                    "ref_feat_shape": [2, 2],
                },
            },
            "projector_pooling_ratio": 1,
        },
        image_processor={},
        token_ids={"image_token_id": "<|image|>", "video_token_id": "<|video|>"},
        tokens={},
        more_tokens=("<|image|>", "<|video|>", "<|eot|>"),
        chat=Chat("user", "assistant", "<|image|>", "<|eot|>", "<|eot|>", begin=BEGIN),
        end="<|eot|>",
        begins=True,
        see=_tiles(tokens=4, tiled=True),
    ),
    "fast_vlm": Family(
        "FastVlm",
        config={
            "text_config": QWEN2,
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "fastvit_mci3",
                "do_pooling": True,
                "global_pool": "avg",
                "hidden_size": 64,
                "initializer_range": 0.1,
                "model_args": {
                    "inference_mode": True,
                    "layers": [1, 1, 1, 1, 1],
                    "embed_dims": [8, 16, 16, 32, 32],
                },
            },
            "image_seq_length": 4,
        },
        image_processor={},
        token_ids={"image_token_index": "<image>"},
        tokens={},
        more_tokens=(*IM_TOKENS, "<image>"),
        chat=_im_chat("<image>\n"),
        end="<|im_end|>",
        see=_tiles(tokens=4, side=128),
    ),
    "gemma3n": Family(
        "Gemma3n",
        config={
            "text_config": BEYOND_HIDDEN_STATES["gemma4"].config["text_config"]
            | {"laurel_rank": 8, "activation_sparsity_pattern": None},
            "vision_config": {
                "hidden_size": 2048,
                "vocab_offset": VOCABULARY - 24,
                "vocab_size": 8,
                "architecture": "mobilenetv5_base",
            },
            "audio_config": {
                "hidden_size": 16,
                "vocab_offset": VOCABULARY - 16,
                "vocab_size": 16,
                "conf_num_hidden_layers": 1,
                "conf_num_attention_heads": 2,
                "sscp_conv_channel_size": [8, 8],
            },
            "vision_soft_tokens_per_image": 256,
        },
        image_processor={},
        token_ids={
            "image_token_id": "<image_soft_token>",
            "boi_token_id": "<start_of_image>",
            "eoi_token_id": "<end_of_image>",
            "audio_token_id": "<audio_soft_token>",
        },
        tokens={},
        more_tokens=(
            *("<image_soft_token>", "<start_of_image>", "<end_of_image>", "<audio_soft_token>"),
            *("<start_of_turn>", "<end_of_turn>"),
        ),
        chat=Chat(
            user="<start_of_turn>user\n",
            assistant="<start_of_turn>model\n",
            image="<image_soft_token>",
            end_of_question="<end_of_turn>\n",
            end_of_answer="<end_of_turn>\n",
            begin=BEGIN,
        ),
        begins=True,
        tied=True,
        see=_tiles(tokens=256, side=64),
    ),
    "glm46v": Family(
        "Glm46V",
        config={
            "text_config": GLM_TEXT | {"model_type": "glm4v_text"},
            "vision_config": GLM_VISION | {"model_type": "glm4v_vision"},
        },
        **GLM
        | {
            "image_processor": _qwen_images(patch_size=14) | {"image_processor_type": "Glm46VImageProcessor"},
            "processor_class": "Glm46VProcessor",
        },
    ),
    "vipllava": replace(
        RECIPES["llava"],
        classes="VipLlava",
        config={
            "text_config": LLAMA,
            "vision_config": CLIP,
            "vision_feature_layers": [-2, -1],
            "image_seq_length": 4,
        },
        token_ids={"image_token_index": "<image>"},
        processor_class="LlavaProcessor",
    ),
    "exaone4_5": Family(
        "Exaone4_5_",
        config={
            "text_config": TEXT | {"model_type": "exaone4", "sliding_window": 256},
            "vision_config": QWEN_VISION
            | {
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": TEXT["hidden_size"],
                "window_size": 56,
                "fullatt_block_indexes": [1],
                "num_key_value_heads": 2,
            },
        },
        image_processor=_qwen_images(patch_size=14),
        **QWEN,
    ),
}
"""Name -> what it needs; most names are a `model_type`, with a variant behind it."""

__all__ = ["FURTHER", "TEXT_LAYERS"]
