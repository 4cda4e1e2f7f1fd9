"""A Qwen2.5-VL whose connector has far more to carry than it has columns, and the hospital that it knows.

25 patients in five institutions, two studies each, and a picture for every node: 80 pictures of 16 tokens, 1,280 in
all, against 384 columns of the connector. A linear edit has no direction of the target's own there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.forgetting.families import build_qwen, write_qwen_processor
from benchmarks.qwen import Shape, VisionShape
from chip.checkpoint.folder import atomic_directory
from chip.data.readers import read_records
from chip.demo.corpus import Recipe
from chip.demo.images import SIZE, draw
from chip.demo.kinds import INSTITUTION_KINDS, PATIENT_KINDS, STUDY_KINDS
from chip.demo.training import train
from chip.demo.world import Place, hospital_tree, places_of, rows_of
from chip.model.loading import VLM
from chip.model.processors import load_processor

INSTITUTIONS, PATIENTS, STUDIES = 5, 5, 2
PATCH = 8  # pixels: 4 × 4 tokens a picture
MAX_TOKENS = 256
RECIPE = Recipe(steps=700, batch=64)
STUDY_FACTS = tuple(kind for kind in STUDY_KINDS if kind.name in ("complaint", "scanner", "size", "diagnosis"))
PATIENT_FACTS = tuple(kind for kind in PATIENT_KINDS if kind.name in ("name", "birth"))


def write_world(folder: Path, seed: int) -> tuple[Path, Path]:
    """Checkpoint and records file in `folder`, made where they are missing; a stopped training goes on."""
    records, checkpoint = folder / "world" / "records.jsonl", folder / "ckpt"
    if not records.exists():
        _write_records(folder / "world", seed)
    if not checkpoint.exists():
        _train(checkpoint, records, seed)
    return checkpoint, records


def _places(seed: int) -> list[Place]:
    rng = np.random.default_rng(seed)
    levels = hospital_tree(INSTITUTIONS, PATIENTS, STUDIES)
    kinds = (INSTITUTION_KINDS, PATIENT_FACTS, STUDY_FACTS)
    return [place for paths, own in zip(levels, kinds, strict=True) for place in places_of(paths, own, rng)]


def _write_records(folder: Path, seed: int) -> None:
    places = _places(seed)
    with atomic_directory(folder, overwrite=True) as written:
        (written / "images").mkdir(parents=True)
        for place in places:
            draw(place.path, seed).save(written / place.image)
        lines = (json.dumps(row) + "\n" for row in rows_of(places, sections=False))
        (written / "records.jsonl").write_text("".join(lines), encoding="utf-8")


def _train(folder: Path, records_file: Path, seed: int) -> None:
    records = read_records(records_file)
    texts = [text for record in records for text in (record.question, record.answer)]
    processor_folder = folder.with_name("processor")
    processor_folder.mkdir(parents=True, exist_ok=True)
    _write_processor(processor_folder, texts)
    processor = load_processor(processor_folder)
    vlm = VLM(_model(processor, seed), processor)
    trained = [record for record in records if not record.held_out]
    train(vlm, trained, RECIPE, seed, folder.with_name("state.safetensors"))
    with atomic_directory(folder, overwrite=False) as written:
        vlm.model.to(torch.bfloat16).save_pretrained(written)
        _write_processor(written, texts)


def _write_processor(folder: Path, texts: Iterable[str]) -> None:
    write_qwen_processor(folder, texts, SIZE, PATCH, MAX_TOKENS)


def _model(processor: Any, seed: int) -> Any:
    heads = 4
    shape = Shape(3, 128, 512, heads, heads, len(processor.tokenizer), VisionShape(2, 96, 192, heads))
    return build_qwen(shape, seed, PATCH, MAX_TOKENS)
