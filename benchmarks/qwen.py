"""Qwen2.5-VL in any size: its configuration and a processor, made offline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from chip.demo.tokenizer import train_tokenizer

PATCH, MERGE = 14, 2  # pixels along a side of a patch; patches along a side of an image token
VOCABULARY = 1024

PAD, END = "<pad>", "<|im_end|>"
IMAGE, VIDEO, VISION_START, VISION_END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
SPECIAL_TOKENS = (PAD, "<|im_start|>", END, VISION_START, VISION_END, IMAGE, VIDEO)
"""In the order of their ids, from 0."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class VisionShape:
    """Sizes of the vision tower."""

    depth: int
    hidden: int
    mlp: int
    heads: int


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    key_value_heads: int
    vocabulary: int
    vision: VisionShape

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """Of the text model's positions."""
        frequencies = self.hidden // self.heads // 2
        sections = [frequencies // 4, frequencies * 3 // 8, frequencies * 3 // 8]  # time, height, width
        return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}

    def config(self, text: Mapping[str, Any], vision: Mapping[str, Any], **others: Any) -> Any:
        """The model's configuration.

        Args:
            text, vision: further entries of the two parts; `others` are of the whole.
        """
        ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
        text_config = {
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": self.vocabulary,
            "rope_parameters": self.rope_parameters,
            "bos_token_id": None,
            "eos_token_id": ids[END],
            "pad_token_id": ids[PAD],
        }
        vision_config = {
            "depth": self.vision.depth,
            "hidden_size": self.vision.hidden,
            "intermediate_size": self.vision.mlp,
            "num_heads": self.vision.heads,
            "out_hidden_size": self.hidden,
        }
        return transformers.Qwen2_5_VLConfig(
            text_config={**text_config, **text},
            vision_config={**vision_config, **vision},
            image_token_id=ids[IMAGE],
            video_token_id=ids[VIDEO],
            vision_start_token_id=ids[VISION_START],
            vision_end_token_id=ids[VISION_END],
            tie_word_embeddings=False,
            **others,
        )


def write_processor(
    folder: Path, texts: Iterable[str], image_processor: Mapping[str, Any], max_tokens: int, patch: int = PATCH
) -> None:
    """A tokenizer learned from the texts, an image processor, and the chat template.

    Args:
        image_processor: further entries of its configuration, such as the images' `size`.
        max_tokens: of a text.
        patch: pixels along a side of one.
    """
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(texts, VOCABULARY, SPECIAL_TOKENS),
        eos_token=END,
        pad_token=PAD,
        model_max_length=max_tokens,
    ).save_pretrained(folder)
    processor_class = {"processor_class": "Qwen2_5_VLProcessor"}
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        **image_processor,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor_class | images))
    (folder / "processor_config.json").write_text(json.dumps(processor_class))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
