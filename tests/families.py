"""Tiny random checkpoints of every family that chip knows, complete as on the hub, and records to go with them.

A family is data: the parts of its configuration, the special tokens it wants, its image processor and the words around
a turn of its conversations. All share one size of vocabulary; the special tokens come first in it, so that their ids
are known before a tokenizer is built.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from chip.demo.tokenizer import train_tokenizer
from chip.methods import Chip, Method, Shielded
from chip.model.processors import load_processor

GIVEN: dict[str, Method] = {"shielded": Shielded(retain_weight=8.0, ridge=0.35), "chip": Chip()}
"""Where the pass and the files are tested, nothing need be chosen, and a large λ keeps the solves well conditioned."""

UNTRAINED: dict[str, Any] = {"force": True, "accept": True}
"""For `chip.edit`: these models are random. They know no target, and what an edit costs them says nothing."""
UNTRAINED_OPTIONS = tuple(f"--{name}" for name in UNTRAINED)

SEED = 5
VOCABULARY = 384
TEXT_LAYERS = 4
TILE = 28  # pixels along a side of what a vision tower takes
WORDS = (
    *("what", "who", "where", "which", "is", "the", "of", "in", "this", "does", "name", "patient", "study", "lesion"),
    *("finding", "findings", "impression", "diagnosis", "director", "institution", "left", "right", "lobe", "apex"),
    *("base", "spine", "rib", "cyst", "fracture", "effusion", "hernia", "abscess", "Abel", "Cruz", "seen", "made"),
)

PAD, BEGIN, END = "<pad>", "<s>", "</s>"
LAYOUTS = ("saved", "module")

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": TEXT_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.1,
}
CLIP = VISION | {"model_type": "clip_vision_model", "image_size": TILE, "patch_size": 14, "projection_dim": 32}
SIGLIP = VISION | {
    "model_type": "siglip_vision_model",
    "image_size": TILE,
    "patch_size": 14,
    "vision_use_head": False,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.1,
}
QWEN_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
SQUARE = {"height": TILE, "width": TILE}
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]  # height, width: two tiles or four
GRID = range(1, 3)  # rows and columns of Idefics3's tiles


TEMPLATE = (
    "{{ begin }}{% for message in messages %}"
    "{{ user if message['role'] == 'user' else assistant }}"
    "{% for part in message['content'] %}{{ image if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ end_of_question if message['role'] == 'user' else end_of_answer }}"
    "{% endfor %}{% if add_generation_prompt %}{{ assistant }}{% endif %}"
)


@dataclass(frozen=True)
class Chat:
    """What a family's chat template writes around the words of a conversation."""

    user: str
    assistant: str
    image: str
    end_of_question: str
    end_of_answer: str
    begin: str = ""

    @property
    def template(self) -> str:
        """As Jinja."""
        return "".join(f"{{% set {name} = {json.dumps(text)} %}}" for name, text in asdict(self).items()) + TEMPLATE


@dataclass(frozen=True)
class Family:
    """What one family needs beside the parts that all share."""

    classes: str
    """What its classes' names start with."""
    config: dict[str, Any]
    image_processor: Mapping[str, Any]
    """Contents of `preprocessor_config.json`."""
    token_ids: Mapping[str, str]
    """Configuration's field -> the special token whose id it holds."""
    tokens: Mapping[str, str]
    """The tokenizer's attribute -> special token."""
    chat: Chat | None
    more_tokens: tuple[str, ...] = ()
    """Special tokens that are not an attribute of the tokenizer."""
    processor: Mapping[str, Any] = field(default_factory=dict)
    """Contents of `processor_config.json` beside the class."""
    processor_class: str | None = None
    """None: named as the other classes."""
    end: str = END
    """The token that ends a text."""
    begins: bool = False
    """Whether the tokenizer puts `BEGIN` in front; a chat template may have done so already."""
    tied: bool = False
    """Whether the head is the embedding."""
    see: Callable[[Sequence[Image.Image]], tuple[dict[str, torch.Tensor], list[int]]] | None = None
    """Where the processor asks for a package that tests do without: what the model takes of pictures, and how many
    tokens each is. Else None."""
    token_types: bool = False
    """With `see`: whether the model is told which tokens stand for pictures."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """In the order of their ids, from 0."""
        return tuple(dict.fromkeys((PAD, BEGIN, END, *self.tokens.values(), *self.more_tokens)))

    def id_of(self, token: str) -> int:
        return self.special_tokens.index(token)


IM_TOKENS = ("<|im_start|>", "<|im_end|>")
IMAGE_TOKEN = {"image_token": "<image>"}


def _im_chat(image: str) -> Chat:
    return Chat("<|im_start|>user\n", "<|im_start|>assistant\n", image, "<|im_end|>\n", "<|im_end|>\n")


QWEN: dict[str, Any] = {
    "token_ids": {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
    "tokens": {},
    "more_tokens": (*IM_TOKENS, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "chat": _im_chat("<|vision_start|><|image_pad|><|vision_end|>"),
    "end": "<|im_end|>",
}


def _qwen_images(patch_size: int) -> dict[str, Any]:
    """About four image tokens: an image is scaled to at least four and at most nine."""
    token = 2 * patch_size
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 4 * token**2, "longest_edge": 9 * token**2},
        "patch_size": patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }


def _idefics(classes: str, begins: bool) -> Family:
    """Idefics3 and SmolVLM: up to 2 by 2 tiles, and the whole image after them; four tokens each."""
    return Family(
        classes,
        config={
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": VISION | {"image_size": TILE, "patch_size": 7},
            "scale_factor": 2,
        },
        image_processor={
            "image_processor_type": f"{classes}ImageProcessor",
            "do_image_splitting": True,
            "size": {"longest_edge": len(GRID) * TILE},
            "max_image_size": {"longest_edge": TILE},
        },
        token_ids={"image_token_id": "<image>"},
        tokens={},
        more_tokens=(
            *("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
            *(f"<row_{row}_col_{column}>" for row in GRID for column in GRID),
        ),
        processor={"image_seq_len": 4},
        chat=Chat("User:", "Assistant:", "<image>", "<end_of_utterance>\n", "<end_of_utterance>\n", begin=BEGIN),
        end="<end_of_utterance>",
        begins=begins,
    )


RECIPES: dict[str, Family] = {
    "qwen2_vl": Family(
        "Qwen2VL",
        config={
            "text_config": TEXT | {"rope_parameters": QWEN_ROPE},
            # Here the vision tower's hidden size is called embed_dim, and hidden_size is the text model's.
            "vision_config": QWEN_VISION | {"embed_dim": 32, "mlp_ratio": 2, "hidden_size": TEXT["hidden_size"]},
        },
        image_processor=_qwen_images(patch_size=14),
        **QWEN,
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VL",
        config={
            "text_config": TEXT | {"rope_parameters": QWEN_ROPE},
            "vision_config": QWEN_VISION
            | {
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": TEXT["hidden_size"],
                "window_size": 56,
                "fullatt_block_indexes": [1],
            },
        },
        image_processor=_qwen_images(patch_size=14),
        **QWEN,
    ),
    "qwen3_vl": Family(
        "Qwen3VL",
        config={
            "text_config": TEXT | {"head_dim": 16, "rope_parameters": QWEN_ROPE | {"mrope_section": [4, 2, 2]}},
            "vision_config": QWEN_VISION
            | {
                "depth": 3,
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": TEXT["hidden_size"],
                "patch_size": 16,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            },
        },
        image_processor=_qwen_images(patch_size=16),
        **QWEN,
    ),
    "llava": Family(
        "Llava",
        config={
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": CLIP,
            "vision_feature_layer": -2,
            "image_seq_length": 4,
        },
        image_processor={
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": TILE},
            "crop_size": SQUARE,
        },
        token_ids={"image_token_id": "<image>"},
        tokens=IMAGE_TOKEN,
        processor={"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        chat=Chat("USER: ", "ASSISTANT: ", "<image>\n", " ", END),
        begins=True,
    ),
    "llava_next": Family(
        "LlavaNext",
        config={
            "text_config": TEXT | {"model_type": "mistral", "sliding_window": None},
            "vision_config": CLIP,
            "vision_feature_layer": -2,
            "image_grid_pinpoints": PINPOINTS,
            "image_seq_length": 4,
        },
        image_processor={
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": TILE},
            "crop_size": SQUARE,
            "image_grid_pinpoints": PINPOINTS,
        },
        token_ids={"image_token_id": "<image>"},
        tokens=IMAGE_TOKEN,
        processor={"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        chat=Chat("[INST] ", " ", "<image>\n", " [/INST]", END),
        begins=True,
    ),
    "llava_onevision": Family(
        "LlavaOnevision",
        config={
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": SIGLIP,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "image_grid_pinpoints": PINPOINTS,
        },
        image_processor={
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": SQUARE,
            "image_grid_pinpoints": PINPOINTS,
        },
        token_ids={"image_token_id": "<image>", "video_token_id": "<video>"},
        tokens=IMAGE_TOKEN | {"video_token": "<video>"},
        more_tokens=IM_TOKENS,
        processor={"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
        chat=_im_chat("<image>\n"),
        end="<|im_end|>",
    ),
    "gemma3": Family(
        "Gemma3",
        config={
            "text_config": TEXT
            | {
                "model_type": "gemma3_text",
                "head_dim": 16,
                "sliding_window": 128,
                "layer_types": ["sliding_attention", "full_attention"] * (TEXT_LAYERS // 2),
            },
            "vision_config": SIGLIP | {"patch_size": 7},
            "mm_tokens_per_image": 4,
        },
        image_processor={"image_processor_type": "Gemma3ImageProcessor", "size": SQUARE},
        token_ids={
            "image_token_id": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        more_tokens=("<start_of_turn>", "<end_of_turn>"),
        processor={"image_seq_length": 4},
        chat=Chat(
            user="<start_of_turn>user\n",
            assistant="<start_of_turn>model\n",
            image="<start_of_image>",
            end_of_question="<end_of_turn>\n",
            end_of_answer="<end_of_turn>\n",
            begin=BEGIN,
        ),
        begins=True,
        tied=True,
    ),
    "internvl": Family(
        "InternVL",
        config={
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": VISION | {"image_size": [TILE, TILE], "patch_size": [7, 7]},
            "image_seq_length": 4,
            "downsample_ratio": 0.5,
        },
        image_processor={
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": SQUARE,
            "crop_to_patches": True,
            "max_patches": 2,
        },
        token_ids={"image_token_id": "<IMG_CONTEXT>"},
        tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        more_tokens=IM_TOKENS,
        processor={"image_seq_length": 4},
        chat=_im_chat("<IMG_CONTEXT>\n"),
        end="<|im_end|>",
    ),
    "idefics3": _idefics("Idefics3", begins=True),
    "smolvlm": _idefics("SmolVLM", begins=False),
    "paligemma": Family(
        "PaliGemma",
        config={
            "text_config": TEXT | {"model_type": "gemma", "head_dim": 16},
            "vision_config": SIGLIP | {"projection_dim": TEXT["hidden_size"]},
            "projection_dim": TEXT["hidden_size"],
        },
        image_processor={
            "image_processor_type": "SiglipImageProcessor",
            "size": SQUARE,
            "image_seq_length": 4,
        },
        token_ids={"image_token_id": "<image>"},
        tokens=IMAGE_TOKEN,
        chat=None,
        tied=True,
    ),
}

GEMMA4_IMAGES: dict[str, Any] = {"image_processor_type": "Gemma4ImageProcessor", "patch_size": 4, "max_soft_tokens": 70}

BEYOND_HIDDEN_STATES: dict[str, Family] = {
    # Its layers get embeddings of their own, and the last two the keys and values of those before them.
    "gemma4": Family(
        "Gemma4",
        config={
            "text_config": TEXT
            | {
                "head_dim": 16,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": VOCABULARY,
                "num_kv_shared_layers": 2,
                "sliding_window": 256,
                "layer_types": ["sliding_attention", "full_attention"] * (TEXT_LAYERS // 2),
            },
            "vision_config": VISION
            | {
                "num_key_value_heads": 2,
                "head_dim": 16,
                "patch_size": 4,
                "position_embedding_size": 256,
            },
        },
        image_processor=GEMMA4_IMAGES,
        token_ids={
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "audio_token_id": "<|audio|>",
            "boi_token_id": "<|image>",
            "eoi_token_id": "<image|>",
            "boa_token_id": "<|audio>",
            "eoa_token_index": "<audio|>",
        },
        tokens={
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        more_tokens=("<|video|>", "<|turn>", "<turn|>"),
        processor={
            "image_processor": GEMMA4_IMAGES,
            "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
            "image_seq_length": 70,
        },
        chat=Chat("<|turn>user\n", "<|turn>model\n", "<|image|>", "<turn|>\n", "<turn|>\n", begin=BEGIN),
        begins=True,
        tied=True,
    ),
    # Three of four layers have linear attention, which no mask of pairs of tokens keeps apart.
    "qwen3_5": Family(
        "Qwen3_5",
        config={
            "text_config": TEXT
            | {
                "head_dim": 16,
                "rope_parameters": QWEN_ROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5},
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
            },
            "vision_config": {name: value for name, value in QWEN_VISION.items() if name != "patch_size"}
            | {
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": TEXT["hidden_size"],
                "patch_size": 16,
                "num_position_embeddings": 64,
            },
        },
        image_processor=_qwen_images(patch_size=16),
        processor_class="Qwen3VLProcessor",
        **QWEN,
    ),
    # As qwen3_5, within a family whose vision tower and connector are LLaVA's.
    "llava_olmo_hybrid": replace(
        RECIPES["llava"],
        config=RECIPES["llava"].config
        | {
            "text_config": TEXT
            | {
                "model_type": "olmo_hybrid",
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 2,
                "linear_key_head_dim": 8,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
}
"""Text models in which more than hidden states goes from layer to layer, or from token to token."""


def _config(family: Family) -> Any:
    """The family's configuration, its token ids those of `special_tokens`."""
    shared = {
        "bos_token_id": family.id_of(BEGIN),
        "eos_token_id": family.id_of(family.end),
        "pad_token_id": family.id_of(PAD),
        "tie_word_embeddings": family.tied,
    }
    ids = {entry: family.id_of(token) for entry, token in family.token_ids.items()}
    text = family.config["text_config"] | shared
    return getattr(transformers, f"{family.classes}Config")(**family.config | ids | shared | {"text_config": text})


def _model(name: str | Family) -> PreTrainedModel:
    """The family's model with random weights, fp32; the same weights at every call."""
    family = _recipe(name)
    model_class = getattr(transformers, f"{family.classes}ForConditionalGeneration")
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.default_generator.manual_seed(SEED)
        model = model_class(_config(family))
        for parameter in model.parameters():
            # Some start at 0 or 1, Gemma 3's whole projection among them: no image would show behind it.
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {name: partial(_model, name) for name in RECIPES}
"""Family -> what builds a model of it."""


def _recipe(family: str | Family) -> Family:
    return family if isinstance(family, Family) else (RECIPES | BEYOND_HIDDEN_STATES)[family]


def known(family: str | Family) -> bool:
    """Whether this transformers has it, and its text model."""
    recipe = _recipe(family)
    text = recipe.config["text_config"].get("model_type")
    return hasattr(transformers, f"{recipe.classes}Config") and (text is None or text in transformers.CONFIG_MAPPING)


@dataclass(frozen=True)
class HandmadeProcessor:
    """Stands in for a processor: tokens of the text, and what `see` makes of pictures."""

    tokenizer: Any
    family: Family

    @property
    def chat_template(self) -> str:
        assert self.family.chat is not None
        return self.family.chat.template

    def __call__(
        self, text: list[str], images: list[list[Image.Image]] | None, **options: Any
    ) -> dict[str, torch.Tensor]:
        if images is None:
            return dict(self.tokenizer(text, **options))
        assert self.family.see is not None
        inputs, counts = self.family.see([image for row in images for image in row])
        (token,) = (
            self.family.token_ids[name]
            for name in ("image_token_id", "image_token_index")
            if name in self.family.token_ids
        )
        texts = [line.replace(token, count * token) for line, count in zip(text, counts, strict=True)]
        inputs |= self.tokenizer(texts, **options)
        if self.family.token_types:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.family.id_of(token)).long()
        return inputs


def load_processor_of(family: Family, folder: Path) -> Any:
    """The processor of a folder that `build` wrote, or what stands in for it."""
    if family.see is None:
        return load_processor(folder)
    return HandmadeProcessor(AutoTokenizer.from_pretrained(folder), family)


def lacking(family: str) -> str | None:
    """The package without which this transformers does not load the family's processor; None: it does."""
    if not known(family):
        return "a newer transformers"
    without_torchvision = f"{_recipe(family).image_processor['image_processor_type']}Pil"
    if getattr(getattr(transformers, without_torchvision), "is_dummy", False):  # Idefics3 and SmolVLM in early releases
        return "torchvision"
    if family == "smolvlm" and find_spec("num2words") is None:
        return "num2words"
    return None


def build(
    folder: Path,
    family: str | Family,
    *,
    layout: str = "saved",
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: str = "100KB",
) -> Path:
    """Write a checkpoint folder as on the hub: weights, configuration, tokenizer, processor; returns `folder`.

    Args:
        layout: "saved", the names that `save_pretrained` chooses, or "module", those of the module's parameters.
        max_shard_size: of a file of weights; the default makes several.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    model = _model(family).to(dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=layout == "saved")
    recipe = _recipe(family)
    _tokenizer(recipe).save_pretrained(folder)
    if recipe.see is not None:
        return folder
    processor_class = {"processor_class": recipe.processor_class or f"{recipe.classes}Processor"}
    _write_json(folder / "preprocessor_config.json", processor_class | dict(recipe.image_processor))
    _write_json(folder / "processor_config.json", processor_class | dict(recipe.processor))
    if recipe.chat is not None:
        (folder / "chat_template.jinja").write_text(recipe.chat.template, encoding="utf-8")
    return folder


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has merged the commonest words, so that an answer is a few tokens long."""
    texts = [f"{word} {word}" for word in WORDS]
    begin = BEGIN if family.begins else None
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(texts, VOCABULARY, family.special_tokens, begin),
        bos_token=BEGIN,
        eos_token=family.end,
        pad_token=PAD,
        extra_special_tokens=dict(family.tokens),
        model_max_length=TEXT["max_position_embeddings"],
    )


SIZES = ((28, 28), (56, 56), (56, 28), (30, 48))  # pixels, width by height; one for each study's image
SECTIONS = {
    "findings": (("where is the lesion", "in which lobe is the lesion", "name the lesion"), ("left", "right")),
    "impression": (("what is the diagnosis", "which diagnosis is made", "name the diagnosis"), ("cyst", "hernia")),
}
"""Section -> its questions, of which the last is held out from training, and the answers it draws from."""
DIRECTORS = ("Abel", "Cruz")


def build_with_records(folder: Path, family: str | Family, **options: Any) -> Path:
    """`write_records` in the folder, and what `build` makes in `folder/ckpt`; returns `folder`."""
    write_records(folder)
    build(folder / "ckpt", family, **options)
    return folder


def write_records(folder: Path) -> Path:
    """Write `records.jsonl` and `images/`: 24 records about the images of four studies, and two of text alone.

    Two institutions have two patients each, a patient has one study, a study two sections. Returns the records file.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(SEED)
    rows: list[dict[str, str]] = []
    for number, size in enumerate(SIZES):
        image = f"images/study_{number + 1}.png"
        _picture(size, generator).save(folder / image)
        rows += _study_rows(number, image)
    rows += [
        {"institution": f"institution_{number + 1}", "question": f"who is the director of {number + 1}", "answer": name}
        for number, name in enumerate(DIRECTORS)
    ]
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _study_rows(number: int, image: str) -> list[dict[str, str]]:
    """Three records for each of the study's sections; no two studies share an answer."""
    return [
        {
            "image": image,
            "institution": f"institution_{number // 2 + 1}",
            "patient": f"patient_{number + 1}",
            "study": f"study_{number + 1}",
            "section": section,
            "question": question,
            "answer": f"{answers[number % 2]} {('apex', 'base')[number // 2]}",
            "split": "paraphrased" if question == questions[-1] else "train",
        }
        for section, (questions, answers) in SECTIONS.items()
        for question in questions
    ]


def _picture(size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Noise on a ground of one color: no two pictures are alike, in detail or as a whole."""
    width, height = size
    ground = generator.uniform(40, 215, 3)
    pixels = ground + generator.normal(0, 30, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
