"""Small models of two families before they have learned anything, and their processors, made offline.

Both see four image tokens and have a wide MLP: the tokens of some records are not to span the whole space in which
those of all others lie, just as they do not in a model of billions of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.qwen import MERGE, Shape, VisionShape, write_processor
from chip.demo import model as demo
from chip.demo.images import SIZE

PATCH = 16  # pixels along a side of Qwen's
MAX_TOKENS = 512


@dataclass(frozen=True)
class Family:
    """How a model and its processor are made."""

    write_processor: Callable[[Path, Iterable[str]], None]
    """Into a folder, the tokenizer learned from the given texts."""
    model: Callable[[Any, int], Any]
    """Takes the processor and a seed; returns the untrained model, fp32."""


def _write_llava_processor(folder: Path, texts: Iterable[str]) -> None:
    demo.build_processor(texts).save_pretrained(folder)


def write_qwen_processor(
    folder: Path, texts: Iterable[str], side: int = SIZE, patch: int = PATCH, max_tokens: int = MAX_TOKENS
) -> None:
    """
    Args:
        side, patch: pixels along a side of an image, and of a patch.
    """
    images = {
        "size": {"shortest_edge": side**2, "longest_edge": side**2},  # pixels of the whole image
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    write_processor(folder, (f"user\n{text} assistant\n" for text in texts), images, max_tokens, patch)


def _qwen(processor: Any, seed: int) -> Any:
    hidden, heads = 128, 4
    shape = Shape(4, hidden, 1024, heads, heads, len(processor.tokenizer), VisionShape(2, 128, 256, 4))
    return build_qwen(shape, seed)


def build_qwen(shape: Shape, seed: int, patch: int = PATCH, max_tokens: int = MAX_TOKENS, side: int = SIZE) -> Any:
    """An untrained Qwen2.5-VL of this shape, for pictures of `side` pixels, each seen as a whole."""
    torch.manual_seed(seed)
    rope = shape.rope_parameters | {"rope_theta": 1e4}
    text = {"initializer_range": 0.08, "max_position_embeddings": max_tokens, "rope_parameters": rope}
    vision = {
        "patch_size": patch,
        "spatial_merge_size": MERGE,
        "window_size": side,
        "fullatt_block_indexes": list(range(shape.vision.depth)),
    }
    return transformers.Qwen2_5_VLForConditionalGeneration(shape.config(text, vision))


FAMILIES = {
    "llava": Family(_write_llava_processor, demo.build_model),
    "qwen2_5_vl": Family(write_qwen_processor, _qwen),
}
