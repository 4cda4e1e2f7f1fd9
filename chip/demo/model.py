"""The hospital's model before it has learned anything: a LLaVA of 2.7 million parameters, and its processor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from chip.demo.images import SIZE
from chip.demo.tokenizer import train_tokenizer

PATCH = 32  # pixels
VOCABULARY = 1024
SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_processor(corpus: Iterable[str], side: int = SIZE, patch: int = PATCH) -> Any:
    """A byte-level BPE tokenizer learned from `corpus`, a CLIP image processor and the chat template, in one.

    Args:
        side, patch: pixels along a side of an image, and of a patch.
    """
    fast = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(corpus, VOCABULARY, SPECIAL, begin="<s>"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=512,
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": side, "width": side},
            do_center_crop=False,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=fast,
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def build_model(
    processor: Any, seed: int, text: Mapping[str, Any] = {}, vision: Mapping[str, Any] = {}, **others: Any
) -> Any:
    """The untrained model, fp32.

    Args:
        text, vision: entries of the two parts' configurations that are to be other than the demo's; `others` are of
            the whole.
    """
    tokenizer = processor.tokenizer
    torch.manual_seed(seed)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return LlavaForConditionalGeneration(
        LlavaConfig(
            text_config={
                "model_type": "llama",
                "hidden_size": 128,
                "intermediate_size": 1024,
                "num_hidden_layers": 4,
                "initializer_range": 0.08,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 512,
                **special,
                **text,
            },
            vision_config={
                "model_type": "clip_vision_model",
                "hidden_size": 192,
                "intermediate_size": 384,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": SIZE,
                "patch_size": PATCH,
                "projection_dim": 128,
                **vision,
            },
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=False,
            **special,
            **{"image_seq_length": (SIZE // PATCH) ** 2, "vision_feature_layer": [-3, -2, -1], **others},
        )
    )
