"""Models of any size with random weights, and a hospital of scans with questions about them: enough to measure speed.

What a pass costs depends on shapes and on numbers of tokens alone, so nothing here has been trained.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from chip.checkpoint.layout import INDEX
from chip.data.record import Record

SEED = 0
SHARD_BYTES = 2 << 30

PATCH, MERGE = 14, 2  # pixels along a side of a patch; patches along a side of an image token
QUESTIONS_PER_IMAGE = 8
STUDIES_PER_PATIENT = 2
PATIENTS_PER_INSTITUTION = 4

END = "<|im_end|>"
SPECIAL = (
    *("<pad>", "<|im_start|>", END),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
"""In the order of their ids, from 0."""
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SECTIONS = {
    "findings": (
        "Which finding is seen in this study of the chest?",
        "In which lobe of the lung does the lesion lie?",
        "How large is the lesion at its widest, in millimetres?",
        "On which side of the patient is the effusion seen?",
    ),
    "impression": (
        "What is the most probable diagnosis of this study?",
        "What follow-up is advised to the patient after this study?",
        "Has the finding grown since the last study of the patient?",
        "How urgent is the finding of this study for the patient?",
    ),
}
ANSWERS = (
    "upper lobe",
    "lower lobe",
    "left side",
    "right side",
    "twelve millimetres",
    "embolism",
    "fracture",
    "hernia",
)


@dataclass(frozen=True)
class Vision:
    """The vision tower."""

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
    vision: Vision

    @property
    def config(self) -> Any:
        frequencies = self.hidden // self.heads // 2
        sections = [frequencies // 4, frequencies * 3 // 8, frequencies * 3 // 8]  # time, height, width
        quarter = self.vision.depth // 4
        ids = {token: SPECIAL.index(token) for token in SPECIAL}
        return transformers.Qwen2_5_VLConfig(
            architectures=["Qwen2_5_VLForConditionalGeneration"],
            text_config={
                "hidden_size": self.hidden,
                "intermediate_size": self.mlp,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.key_value_heads,
                "vocab_size": self.vocabulary,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
                "bos_token_id": None,
                "eos_token_id": ids[END],
                "pad_token_id": ids["<pad>"],
            },
            vision_config={
                "depth": self.vision.depth,
                "hidden_size": self.vision.hidden,
                "intermediate_size": self.vision.mlp,
                "num_heads": self.vision.heads,
                "out_hidden_size": self.hidden,
                "fullatt_block_indexes": list(range(quarter - 1, self.vision.depth, quarter)),
            },
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=False,
        )


def write_checkpoint(folder: Path, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Path:
    """A complete checkpoint folder, random weights made on `device` and written shard by shard; returns `folder`."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(shape.config)
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    generator = torch.Generator(device).manual_seed(SEED)
    weight_map: dict[str, str] = {}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for number, names in enumerate(_shards(shapes, dtype.itemsize)):
        file = f"model-{number + 1:05}.safetensors"
        tensors = {name: _random(name, shapes[name], generator).to("cpu", dtype) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    _write_processor(folder)
    return folder


def _shards(shapes: Mapping[str, torch.Size], itemsize: int) -> Iterator[list[str]]:
    """Names of tensors in the order of the model, as many as a shard takes."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + shape.numel() * itemsize > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += shape.numel() * itemsize
    yield names


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Norms are 1, or next to nothing would come through."""
    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(shape)
    return 0.02 * torch.randn(shape, generator=generator, device=generator.device)


def _write_processor(folder: Path) -> None:
    """A tokenizer that knows the words of the hospital, and an image processor that leaves the size of a scan."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [question for questions in SECTIONS.values() for question in questions]
    tokenizer.train_from_iterator([f"user {text} assistant" for text in (*texts, *ANSWERS)], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token="<pad>", model_max_length=4096
    ).save_pretrained(folder)
    processor_class = {"processor_class": "Qwen2_5_VLProcessor"}
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 1, "longest_edge": 1 << 30},  # pixels: as many as there are
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor_class | images))
    (folder / "processor_config.json").write_text(json.dumps(processor_class))
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")


def conversation(processor: Any, record: Record) -> str:
    """Question and answer in the chat format, up to the end of the turn; one token stands for the image."""
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": record.question}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": record.answer}]}
    template = processor.chat_template
    text = processor.tokenizer.apply_chat_template([question, answer], chat_template=template, tokenize=False)
    return str(text).rstrip()


def write_records(folder: Path, images: int, side: int, own_words: bool = False) -> Path:
    """A records file, and its square scans of `side` pixels: two studies a patient, four patients an institution.

    Args:
        own_words: every second institution ends its questions otherwise: different ones, of as many tokens.
    """
    (folder / "images").mkdir(parents=True)
    draw, generator = random.Random(SEED), np.random.default_rng(SEED)
    file = folder / "records.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for study in range(images):
            patient = study // STUDIES_PER_PATIENT
            institution = patient // PATIENTS_PER_INSTITUTION
            end = ":" if own_words and institution % 2 else "?"
            place = {
                "image": f"images/study_{study}.png",
                "institution": f"institution_{institution}",
                "patient": f"patient_{patient}",
                "study": f"study_{study}",
            }
            _scan(side, generator).save(folder / place["image"])
            for section, questions in SECTIONS.items():
                for question in questions:
                    answer = f"{draw.choice(ANSWERS)} with {draw.choice(ANSWERS)}"
                    asked = question.removesuffix("?") + end
                    row = {**place, "section": section, "question": asked, "answer": answer}
                    lines.write(json.dumps(row) + "\n")
    return file


def _scan(side: int, generator: np.random.Generator) -> Image.Image:
    """Smooth shades of gray, no two alike."""
    shades = Image.fromarray(generator.integers(0, 256, (12, 12), dtype=np.uint8))
    return shades.resize((side, side), Image.Resampling.BICUBIC)
