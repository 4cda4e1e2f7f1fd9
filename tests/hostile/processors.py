"""Tokenizers, image processors and chat templates that are broken, or do not fit the model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import EVAL, Case, Harm, either, passes, put, refused, remove, shorten, write

SEED = 18
AT = "ckpt|records.jsonl:"
TOKENIZER, PREPROCESSOR = "ckpt/tokenizer.json", "ckpt/preprocessor_config.json"
ODD: tuple[Any, ...] = (None, -1, 0, 7, 10**12, 2**70, "", "x", [], [1], {}, {"type": "x"}, ...)

TOKENIZER_KEYS = (
    *(
        "version",
        "truncation",
        "padding",
        "added_tokens",
        "added_tokens.0",
        "added_tokens.3.id",
        "added_tokens.3.content",
    ),
    *("normalizer", "pre_tokenizer", "pre_tokenizer.type", "post_processor", "post_processor.single"),
    *("post_processor.special_tokens", "decoder", "decoder.type", "model", "model.type", "model.vocab", "model.merges"),
    *("model.unk_token", "model.dropout", "model.byte_fallback", "model.continuing_subword_prefix"),
)
TOKENIZER_CONFIG_KEYS = (
    *(
        "bos_token",
        "eos_token",
        "pad_token",
        "image_token",
        "model_max_length",
        "tokenizer_class",
        "extra_special_tokens",
    ),
    *("chat_template", "added_tokens_decoder", "auto_map", "padding_side", "processor_class"),
)
PREPROCESSOR_KEYS = (
    *("image_processor_type", "size", "size.shortest_edge", "crop_size", "crop_size.height", "do_resize", "resample"),
    *("image_mean", "image_std", "rescale_factor", "do_convert_rgb", "processor_class", "do_center_crop"),
)
PROCESSOR_KEYS = ("processor_class", "patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")

TOKENIZERS: dict[str, Harm] = {
    "merges of tokens that are none": put(TOKENIZER, "model.merges", ["a bc", "nonesuch token"]),
    "merges without a space": put(TOKENIZER, "model.merges", ["ab"]),
    "merges of three": put(TOKENIZER, "model.merges", [["a", "b", "c"]]),
    "merges of numbers": put(TOKENIZER, "model.merges", [[1, 2]]),
    "ids that occur twice": put(TOKENIZER, "model.vocab", {"a": 1, "b": 1}),
    "ids beyond the embedding": put(TOKENIZER, "model.vocab", {chr(n): 10**6 + n for n in range(33, 400)}),
    "an id of 4 billion": put(TOKENIZER, "model.vocab", {"a": 2**32 - 1}),
    "negative ids": put(TOKENIZER, "model.vocab", {"a": -1}),
    "a template of tokens that are none": put(
        TOKENIZER, "post_processor.single", [{"SpecialToken": {"id": "x", "type_id": 0}}]
    ),
    "a pattern that goes back and forth": put(
        TOKENIZER,
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "(a+)+$|(\\w+\\s?)+$"}, "behavior": "Isolated", "invert": False},
    ),
    "a pattern that is none": put(
        TOKENIZER,
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    ),
    "a normalizer that drops everything": put(
        TOKENIZER, "normalizer", {"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": ""}
    ),
    "a normalizer that makes 1000 of one": put(
        TOKENIZER, "normalizer", {"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": "a" * 1000}
    ),
    "a charsmap that is none": put(TOKENIZER, "normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "truncation to nothing": put(
        TOKENIZER, "truncation", {"max_length": 0, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    ),
    "truncation to four tokens": put(
        TOKENIZER, "truncation", {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    ),
    "a stride beyond the length": put(
        TOKENIZER, "truncation", {"max_length": 4, "strategy": "LongestFirst", "stride": 9, "direction": "Right"}
    ),
    "padding to 10 billion": put(
        TOKENIZER,
        "padding",
        {
            "strategy": {"Fixed": 10**10},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
    ),
    "no words": put(TOKENIZER, "model", {"type": "WordLevel", "vocab": {}, "unk_token": "x"}),
    "unigrams without scores": put(TOKENIZER, "model", {"type": "Unigram", "vocab": [["a"]], "unk_id": 0}),
    "unigrams whose unknown one is none": put(
        TOKENIZER, "model", {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}
    ),
    "word pieces without the unknown one": put(
        TOKENIZER,
        "model",
        {
            "type": "WordPiece",
            "vocab": {"a": 0},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    ),
    "an image token of two": put("ckpt/tokenizer_config.json", "image_token", "two tokens"),
    "an end that no text has": put("ckpt/tokenizer_config.json", "eos_token", "nonesuch"),
    "no end": put("ckpt/tokenizer_config.json", "eos_token", None),
    "no padding": put("ckpt/tokenizer_config.json", "pad_token", None),
}

FILES: dict[str, bytes] = {
    "an empty file": b"",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "a pickle": b"\x80\x04K\x07.",
    "zeros": bytes(1000),
    "deep": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "half of a surrogate pair": b'{"model": "\\ud800"}',
}

IMAGE_PROCESSORS: tuple[tuple[str, Any], ...] = (
    ("size", {"shortest_edge": 10**6}),
    ("size", {"height": 10**6, "width": 10**6}),
    ("size", {"height": 14, "width": 14}),
    ("size", {"height": 0, "width": 0}),
    ("crop_size", {"height": 10**6, "width": 10**6}),
    ("crop_size", {"height": 56, "width": 56}),
    ("crop_size", {"height": 28, "width": 42}),
    ("crop_size", {"height": 29, "width": 29}),
    ("image_std", [0, 0, 0]),
    ("image_mean", [0.5]),
    ("image_mean", [1e300, 0, 0]),
    ("rescale_factor", 1e308),
    ("image_processor_type", "Qwen2VLImageProcessor"),
    ("image_processor_type", "NonesuchImageProcessor"),
    ("image_processor_type", "os.system"),
)

PART = "{{ '<image>' if p['type'] == 'image' else p['text'] }}"
ANSWER = f"{{% for m in messages %}}{{% for p in m['content'] %}}{PART}{{% endfor %}} {{% endfor %}}"
TEMPLATES: dict[str, str] = {
    "empty": "",
    "no Jinja": "{% for",
    "a tag that is none": "{% nonesuch %}",
    "a name that is none": "{{ nonesuch.attribute }}",
    "a filter that is none": "{{ messages | nonesuch }}",
    "raises": "{{ raise_exception('never') }}",
    "divides by zero": "{{ 1 / 0 }}",
    "imports a file": "{% include '/etc/passwd' %}",
    "reaches for Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "reaches for globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "calls itself": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "says nothing of the messages": "hello",
    "drops the answer": "{{ messages[0]['content'] }}",
    "half of a surrogate pair": "{{ '\\ud800' }}" + ANSWER,
    "the image twice": "<image>" + ANSWER,
    "the image never": ANSWER.replace(PART, "{{ p.text }}"),
    "counts for ever": "{% for _ in range(90000) %}{% for _ in range(90000) %}{% endfor %}{% endfor %}" + ANSWER,
    "a power that takes for ever": "{{ (messages | length + 7) ** (9 ** 9) }}" + ANSWER,
    "doubles a text": "{% set t = namespace(x='aa') %}{% for _ in range(60) %}{% set t.x = t.x ~ t.x %}{% endfor %}"
    + ANSWER,
    "10 GB of text": "{{ 'a' * 10**10 }}" + ANSWER,
    "10 GB by a filter": "{{ 'a' | center(10**10) }}" + ANSWER,
    "10 GB by a format": "{{ '%9999999999d' | format(1) }}" + ANSWER,
    "a list of 10 billion": "{{ (range(90000) | list * 100000) | length }}" + ANSWER,
    "10 MB of text": "{% for _ in range(90000) %}" + 100 * "=" + "{% endfor %}" + ANSWER,
    "counts for ever, for a word of a record": "{% if 'director' in messages | string %}{% for _ in range(90000) %}"
    "{% for _ in range(90000) %}{% endfor %}{% endfor %}{% endif %}" + ANSWER,
    "10 GB for a word of a record": "{% if 'director' in messages | string %}{{ 'a' * 10**10 }}{% endif %}" + ANSWER,
    "raises for a word of a record": "{% if 'director' in messages | string %}{{ raise_exception('no') }}"
    "{% endif %}" + ANSWER,
    "draws lots": "{{ range(9999) | random }}" + ANSWER,
    "a number": "7",
    "a text": "{{ messages }}",
}


def _spoiled(file: str, keys: tuple[str, ...], count: int) -> Iterator[Case]:
    rng = random.Random(f"{SEED} {file}")
    for key, value in rng.sample([(key, value) for key in keys for value in ODD], count):
        shown = "missing" if value is ... else repr(value)
        yield either(f"{Path(file).name}: {key} is {shown}", put(file, key, value), AT)


def _pad_template(folder: Path) -> None:
    file = folder / "ckpt" / "chat_template.jinja"
    file.write_text(file.read_text() + "{# " + " " * 1_000_000 + " #}")


def _vocabulary(folder: Path) -> None:
    """A million tokens, all with the longest of names that differ in one letter."""
    content = json.loads((folder / TOKENIZER).read_text())
    content["model"]["vocab"] |= {f"{'a' * 50}{n}": 400 + n for n in range(200_000)}
    (folder / TOKENIZER).write_text(json.dumps(content))


CASES: list[Case] = [
    *(either(name, harm, AT) for name, harm in TOKENIZERS.items()),
    either("a vocabulary of 200,000 more", _vocabulary, AT),
    *(refused(f"tokenizer.json: {name}", write(TOKENIZER, text), AT) for name, text in FILES.items()),
    *(refused(f"tokenizer.json, its first {share:.0%}", shorten(TOKENIZER, share), AT) for share in (0.01, 0.5, 0.99)),
    refused("no tokenizer.json", remove(TOKENIZER), AT),
    either("no tokenizer_config.json", remove("ckpt/tokenizer_config.json"), AT),
    either("no processor_config.json", remove("ckpt/processor_config.json"), AT),
    either("no preprocessor_config.json", remove(PREPROCESSOR), AT),
    *_spoiled(TOKENIZER, TOKENIZER_KEYS, 45),
    *_spoiled("ckpt/tokenizer_config.json", TOKENIZER_CONFIG_KEYS, 25),
    *_spoiled(PREPROCESSOR, PREPROCESSOR_KEYS, 25),
    *_spoiled("ckpt/processor_config.json", PROCESSOR_KEYS, 15),
    *(either(f"{key} is {value!r}", put(PREPROCESSOR, key, value), AT) for key, value in IMAGE_PROCESSORS),
    *(
        either(f"a template: {name}", write("ckpt/chat_template.jinja", text), AT, EVAL)
        for name, text in TEMPLATES.items()
    ),
    passes("a template of many spaces", _pad_template),
]
