"""`config.json` and its neighbors with values that a class of transformers does not expect."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tests.hostile.case import EDIT, INSPECT, Case, either, put, refused, remove, shorten, write

SEED = 18
AT = "ckpt|records.jsonl:|in its configuration|LlavaFor"
ODD: tuple[Any, ...] = (None, -1, 0, 1, 7, 0.5, 1e30, 10**12, 2**70, "", "x", "64", True, [], [1, 2], {}, {"a": 1}, ...)
"""In the place of a number or a word; `...`: it is not there."""

TEXT: tuple[str, ...] = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
TEXT += ("vocab_size", "max_position_embeddings", "rms_norm_eps", "head_dim", "hidden_act", "model_type")
TEXT += ("rope_parameters", "rope_parameters.rope_type", "rope_parameters.rope_theta", "tie_word_embeddings")
VISION: tuple[str, ...] = (
    "hidden_size",
    "image_size",
    "patch_size",
    "num_channels",
    "num_attention_heads",
    "num_hidden_layers",
)
VISION += ("intermediate_size", "projection_dim", "model_type", "hidden_act", "layer_norm_eps")
TOP: tuple[str, ...] = (
    "architectures",
    "model_type",
    "text_config",
    "vision_config",
    "image_token_index",
    "vision_feature_layer",
)
TOP += ("vision_feature_select_strategy", "image_seq_length", "projector_hidden_act", "multimodal_projector_bias")
TOP += (
    "dtype",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "auto_map",
    "_attn_implementation",
)
KEYS = (*TOP, *(f"text_config.{key}" for key in TEXT), *(f"vision_config.{key}" for key in VISION))

WHOLE: dict[str, bytes] = {
    "an empty file": b"",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "no JSON": b"{",
    "not UTF-8": b'{"model_type": "\xff"}',
    "UTF-16": '{"model_type": "llava"}'.encode("utf-16"),
    "deep": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a name twice": b'{"model_type": "llava", "model_type": "llava"}',
    "half of a surrogate pair": b'{"model_type": "\\ud800"}',
    "a model type that is a path": b'{"model_type": "../../etc/passwd"}',
    "a model type with an order": b'{"model_type": "\\u001b[2J[red]"}',
    "a text model": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
    "a number of 5000 digits": b'{"model_type": "llava", "image_token_index": ' + b"9" * 5000 + b"}",
}

NEIGHBORS = ("generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
GENERATION: tuple[tuple[str, Any], ...] = (
    ("eos_token_id", "x"),
    ("eos_token_id", [2, "x"]),
    ("eos_token_id", {"a": 1}),
    ("eos_token_id", -1),
    ("eos_token_id", 10**12),
    ("eos_token_id", 2**70),
    ("eos_token_id", 0.5),
    ("pad_token_id", "x"),
    ("pad_token_id", []),
    ("bos_token_id", {}),
    ("max_length", -1),
    ("max_length", "x"),
    ("temperature", "x"),
    ("temperature", -1),
    ("top_k", -1),
    ("top_p", 7),
    ("num_beams", 0),
    ("num_beams", 10**12),
    ("do_sample", "yes"),
    ("cache_implementation", "x"),
    ("transformers_version", None),
    ("watermarking_config", 7),
    ("compile_config", 7),
)


def _spoiled(count: int) -> Iterator[Case]:
    """Some of all keys with some of all odd values, drawn by the seed."""
    rng = random.Random(SEED)
    pairs = [(key, value) for key in KEYS for value in ODD]
    for number, (key, value) in enumerate(rng.sample(pairs, count)):
        shown = "missing" if value is ... else repr(value)
        run = (INSPECT, EDIT)[number % 2]
        yield either(f"{key} is {shown}", put("ckpt/config.json", key, value), AT, run)


CASES: list[Case] = [
    *(refused(f"config.json: {name}", write("ckpt/config.json", text), AT, INSPECT) for name, text in WHOLE.items()),
    *(
        refused(f"config.json, its first {share:.0%}", shorten("ckpt/config.json", share), AT)
        for share in (0.1, 0.5, 0.9)
    ),
    refused("no config.json", remove("ckpt/config.json"), AT, INSPECT),
    refused("a million layers", put("ckpt/config.json", "text_config.num_hidden_layers", 10**6), AT, INSPECT),
    refused(
        "a vision tower of a million", put("ckpt/config.json", "vision_config.num_hidden_layers", 10**6), AT, INSPECT
    ),
    *_spoiled(90),
    *(
        either(f"generation_config.json: {key} is {value!r}", put("ckpt/generation_config.json", key, value), AT, run)
        for key, value in GENERATION
        for run in ((*EDIT[:0], "eval", "ckpt", "--forget", "patient_1", "--device", "cpu", "--json"),)
    ),
    *(
        either(f"{file}: {name}", write(f"ckpt/{file}", text), AT)
        for file in NEIGHBORS
        for name, text in WHOLE.items()
        if name
        in ("an empty file", "null", "a list", "an empty object", "not UTF-8", "deep", "half of a surrogate pair")
    ),
]
