"""Random checkpoints of any size, and scans of the demo's hospital with questions: enough to measure speed.

What a pass costs depends on shapes and on numbers of tokens alone, so nothing here has been trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.qwen import Shape, write_processor
from chip.checkpoint.layout import INDEX
from chip.data.record import Record
from chip.demo.images import draw
from chip.demo.kinds import STUDY_KINDS
from chip.demo.world import hospital_tree, image_of, levels_of, places_of

SEED = 0
SHARD_BYTES = 2 << 30
QUESTIONS_PER_IMAGE = len(STUDY_KINDS)
STUDIES_PER_PATIENT, PATIENTS_PER_INSTITUTION = 2, 4


def write_checkpoint(
    folder: Path,
    shape: Shape,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """A complete checkpoint folder; returns `folder`.

    Args:
        device: where the random weights are drawn, shard by shard.
        shard_bytes: of a file of weights, at most; a larger tensor has one to itself.
    """
    folder.mkdir(parents=True)
    quarter = shape.vision.depth // 4
    full_attention = {"fullatt_block_indexes": list(range(quarter - 1, shape.vision.depth, quarter))}
    config = shape.config({}, full_attention, architectures=["Qwen2_5_VLForConditionalGeneration"], dtype=dtype)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    generator = torch.Generator(device).manual_seed(SEED)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_shards(shapes, shard_bytes // dtype.itemsize)):
        file = f"model-{number + 1:05}.safetensors"
        tensors = {name: _random(name, shapes[name], generator).to("cpu", dtype) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    texts = (f"user {text} assistant" for kind in STUDY_KINDS for text in (*kind.generation, *kind.values))
    as_it_is = {"size": {"shortest_edge": 1, "longest_edge": 1 << 30}}  # pixels of an image
    write_processor(folder, texts, as_it_is, max_tokens=4096)
    return folder


def _shards(shapes: Mapping[str, torch.Size], most: int) -> Iterator[list[str]]:
    """Names of tensors in the order of the model, as many as a shard of `most` values takes."""
    names: list[str] = []
    values = 0
    for name, shape in shapes.items():
        if names and values + shape.numel() > most:
            yield names
            names, values = [], 0
        names.append(name)
        values += shape.numel()
    yield names


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Norms are 1, or next to nothing would come through."""
    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(shape)
    return 0.02 * torch.randn(shape, generator=generator, device=generator.device)


def conversation(processor: Any, record: Record) -> str:
    """Question and answer in the chat format, up to the end of the turn; one token stands for the image."""
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": record.question}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": record.answer}]}
    template = processor.chat_template
    text = processor.tokenizer.apply_chat_template([question, answer], chat_template=template, tokenize=False)
    return str(text).rstrip()


def write_records(folder: Path, images: int, side: int, own_words: bool = False) -> Path:
    """A records file about square scans of `side` pixels, eight questions each: two studies a patient, four patients an
    institution; returns the file.

    Args:
        own_words: every second institution asks the same in other words.
    """
    (folder / "images").mkdir(parents=True)
    institutions = -(-images // (STUDIES_PER_PATIENT * PATIENTS_PER_INSTITUTION))
    *_, studies = hospital_tree(institutions, PATIENTS_PER_INSTITUTION, STUDIES_PER_PATIENT)
    lines: list[str] = []
    for place in places_of(studies[:images], STUDY_KINDS, SEED):
        scan = draw(place.path, SEED).resize((side, side), Image.Resampling.BICUBIC)
        scan.save(folder / image_of(place.path))
        other = own_words and int(place.path[0].rpartition("_")[2]) % 2 == 0
        for kind, value in place.facts:
            row = {
                "image": image_of(place.path),
                **levels_of(place.path),
                "section": kind.section,
                "question": kind.generation[int(other)],
                "answer": value,
            }
            lines.append(json.dumps(row) + "\n")
    file = folder / "records.jsonl"
    file.write_text("".join(lines), encoding="utf-8")
    return file
