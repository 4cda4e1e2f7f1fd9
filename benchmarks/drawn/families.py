"""Models of four families in any size before they have learned anything, and their processors, made offline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.drawn.draws import HEAD, ModelDraw
from benchmarks.forgetting.families import MAX_TOKENS, Family, build_qwen, write_qwen_processor
from benchmarks.qwen import MERGE, Shape, VisionShape
from chip.demo.images import SIZE
from chip.demo.model import build_model, build_processor
from chip.demo.tokenizer import train_tokenizer

VOCABULARY = 1024
INITIALIZER_RANGE = 0.08
PAD, BEGIN, END = "<pad>", "<s>", "</s>"


def family_of(draw: ModelDraw) -> Family:
    """How a model of this shape and its processor are made."""
    match draw.family:
        case "llava":
            return _llava(draw)
        case "qwen2_5_vl":
            return _qwen(draw)
        case "gemma3":
            return _gemma(draw)
        case _:
            return _smolvlm(draw)


def _heads(width: int) -> int:
    return max(1, width // HEAD)


def _text(draw: ModelDraw) -> dict[str, Any]:
    return {
        "hidden_size": draw.width,
        "intermediate_size": draw.mlp,
        "num_hidden_layers": draw.layers,
        "num_attention_heads": draw.heads,
        "num_key_value_heads": draw.key_value_heads,
        "max_position_embeddings": MAX_TOKENS,
        "initializer_range": INITIALIZER_RANGE,
    }


def _vision(draw: ModelDraw, width: int, patch: int, side: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": draw.vision_layers,
        "num_attention_heads": _heads(width),
        "image_size": side,
        "patch_size": patch,
    }


def _grid(draw: ModelDraw, patches_a_token: int = 1) -> tuple[int, int]:
    """Pixels along a side of a patch, and of an image, which stays near the size that it is drawn in."""
    along = draw.tokens_side * patches_a_token
    patch = round(SIZE / along)
    return patch, patch * along


def _llava(draw: ModelDraw) -> Family:
    patch, side = _grid(draw)
    vision = _vision(draw, draw.connector_width // draw.concatenated, patch, side)
    others: dict[str, Any] = {
        "vision_feature_layer": list(range(-draw.concatenated, 0)),
        "image_seq_length": draw.image_tokens,
    }
    return Family(
        lambda folder, texts: build_processor(texts, side, patch).save_pretrained(folder),
        lambda processor, seed: build_model(processor, seed, _text(draw), vision, **others),
    )


def _qwen(draw: ModelDraw) -> Family:
    patch, side = _grid(draw, MERGE)
    width = draw.connector_width // MERGE**2

    def model(processor: Any, seed: int) -> Any:
        vision = VisionShape(draw.vision_layers, width, 2 * width, _heads(width))
        size = len(processor.tokenizer)
        shape = Shape(draw.layers, draw.width, draw.mlp, draw.heads, draw.key_value_heads, size, vision)
        return build_qwen(shape, seed, patch, side=side)

    return Family(lambda folder, texts: write_qwen_processor(folder, texts, side, patch), model)


@dataclass(frozen=True)
class _Hub:
    """What a family's folder holds beside its weights, as on the hub."""

    classes: str
    """What its classes' names start with."""
    user: str
    assistant: str
    image: str
    """What stands for an image in a conversation."""
    end: str
    """Of a turn."""
    token_ids: Mapping[str, str]
    """Configuration's field -> the special token whose id it holds."""
    image_processor: Mapping[str, Any]
    processor: Mapping[str, Any]
    tokens: Mapping[str, str] = field(default_factory=dict)
    """The tokenizer's attribute -> special token."""
    more_tokens: tuple[str, ...] = ()

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """In the order of their ids, from 0."""
        marks = (self.user, self.assistant, self.end)
        return tuple(dict.fromkeys((PAD, BEGIN, END, *marks, *self.token_ids.values(), *self.more_tokens)))

    def config(self, text: Mapping[str, Any], vocabulary: int, **others: Any) -> Any:
        """The model's configuration."""
        ids = {token: number for number, token in enumerate(self.special_tokens)}
        shared = {"bos_token_id": ids[BEGIN], "eos_token_id": ids[self.end], "pad_token_id": ids[PAD]}
        return getattr(transformers, f"{self.classes}Config")(
            text_config={**text, **shared, "vocab_size": vocabulary},
            **{name: ids[token] for name, token in self.token_ids.items()},
            **shared,
            **others,
        )

    def write(self, folder: Path, texts: Iterable[str]) -> None:
        """Tokenizer, processor and chat template."""
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=train_tokenizer(texts, VOCABULARY, self.special_tokens, BEGIN),
            bos_token=BEGIN,
            eos_token=self.end,
            pad_token=PAD,
            extra_special_tokens=dict(self.tokens),
            model_max_length=MAX_TOKENS,
        ).save_pretrained(folder)
        named = {"processor_class": f"{self.classes}Processor"}
        (folder / "preprocessor_config.json").write_text(json.dumps(named | dict(self.image_processor)))
        (folder / "processor_config.json").write_text(json.dumps(named | dict(self.processor)))
        (folder / "chat_template.jinja").write_text(
            f"{BEGIN}{{% for message in messages %}}"
            f"{{{{ '{self.user}' if message['role'] == 'user' else '{self.assistant}' }}}}"
            f"{{% for part in message['content'] %}}"
            f"{{{{ '{self.image}' if part['type'] == 'image' else part['text'] }}}}{{% endfor %}}{self.end}"
            f"{{% endfor %}}{{% if add_generation_prompt %}}{self.assistant}{{% endif %}}",
            encoding="utf-8",
        )


def _gemma(draw: ModelDraw) -> Family:
    patch, side = _grid(draw)
    hub = _gemma_hub(draw, side)

    def model(processor: Any, seed: int) -> Any:
        torch.manual_seed(seed)
        text = _text(draw) | {
            "model_type": "gemma3_text",
            "head_dim": HEAD,
            "query_pre_attn_scalar": HEAD,
            "sliding_window": MAX_TOKENS,
            "layer_types": (["sliding_attention", "full_attention"] * draw.layers)[: draw.layers],
        }
        vision = _vision(draw, draw.connector_width, patch, side)
        config = hub.config(
            text,
            len(processor.tokenizer),
            vision_config=vision | {"model_type": "siglip_vision_model", "vision_use_head": False},
            mm_tokens_per_image=draw.image_tokens,
            tie_word_embeddings=True,
        )
        result = transformers.Gemma3ForConditionalGeneration(config)
        projection = result.model.multi_modal_projector.mm_input_projection_weight  # zero, until it is trained
        torch.nn.init.normal_(projection, std=draw.connector_width**-0.5)
        return result

    return Family(hub.write, model)


def _gemma_hub(draw: ModelDraw, side: int) -> _Hub:
    image, begin, end = "<image_soft_token>", "<start_of_image>", "<end_of_image>"
    return _Hub(
        "Gemma3",
        user="<start_of_turn>user",
        assistant="<start_of_turn>model",
        image=begin,
        end="<end_of_turn>",
        token_ids={"image_token_id": image, "boi_token_index": begin, "eoi_token_index": end},
        image_processor={"image_processor_type": "Gemma3ImageProcessor", "size": {"height": side, "width": side}},
        processor={"image_seq_length": draw.image_tokens},
        tokens={"image_token": image, "boi_token": begin, "eoi_token": end},
    )


def _smolvlm(draw: ModelDraw) -> Family:
    scale = 2  # patches along a side of a token
    patch, side = _grid(draw, scale)
    hub = _smolvlm_hub(draw, side)

    def model(processor: Any, seed: int) -> Any:
        torch.manual_seed(seed)
        config = hub.config(
            _text(draw) | {"model_type": "llama"},
            len(processor.tokenizer),
            vision_config=_vision(draw, draw.connector_width // scale**2, patch, side),
            scale_factor=scale,
            tie_word_embeddings=False,
        )
        return transformers.SmolVLMForConditionalGeneration(config)

    return Family(hub.write, model)


def _smolvlm_hub(draw: ModelDraw, side: int) -> _Hub:
    return _Hub(
        "SmolVLM",
        user="User:",
        assistant="Assistant:",
        image="<image>",
        end="<end_of_utterance>",
        token_ids={"image_token_id": "<image>"},
        more_tokens=("<fake_token_around_image>", "<global-img>"),
        image_processor={
            "image_processor_type": "SmolVLMImageProcessor",
            "do_image_splitting": False,
            "size": {"longest_edge": side},
            "max_image_size": {"longest_edge": side},
        },
        processor={"image_seq_len": draw.image_tokens},
    )
