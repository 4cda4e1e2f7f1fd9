"""A Qwen2.5-VL whose connector has far more to carry than it has columns, and the hospital that it knows.

25 patients in five institutions, two studies each, and a picture for every node: 80 pictures of 16 tokens, 1,280 in
all, against 384 columns of the connector. A linear edit has no direction of the target's own there.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.forgetting.families import Family, build_qwen, write_qwen_processor
from benchmarks.hospitals import write_hospital, write_learned
from benchmarks.qwen import Shape, VisionShape
from chip.data.record import Record
from chip.demo.corpus import Recipe
from chip.demo.images import SIZE
from chip.demo.kinds import INSTITUTION_KINDS, PATIENT_KINDS, STUDY_KINDS
from chip.demo.training import train
from chip.model.loading import VLM

SIZES = (5, 5, 2)
PATCH = 8  # pixels: 4 × 4 tokens a picture
MAX_TOKENS = 256
RECIPE = Recipe(steps=700, batch=64)
STUDY_FACTS = tuple(kind for kind in STUDY_KINDS if kind.name in ("complaint", "scanner", "size", "diagnosis"))
PATIENT_FACTS = tuple(kind for kind in PATIENT_KINDS if kind.name in ("name", "birth"))


def write_world(folder: Path, seed: int) -> tuple[Path, Path]:
    """Checkpoint and records file in `folder`, made where they are missing; a stopped training goes on."""
    records = write_hospital(folder / "world", SIZES, (INSTITUTION_KINDS, PATIENT_FACTS, STUDY_FACTS), seed)

    def learn(vlm: VLM, trained: list[Record]) -> None:
        train(vlm, trained, RECIPE, seed, folder / "state.safetensors")

    return write_learned(folder / "ckpt", records, _FAMILY, seed, learn), records


def _model(processor: Any, seed: int) -> Any:
    heads = 4
    shape = Shape(3, 128, 512, heads, heads, len(processor.tokenizer), VisionShape(2, 96, 192, heads))
    return build_qwen(shape, seed, PATCH, MAX_TOKENS)


_FAMILY = Family(partial(write_qwen_processor, side=SIZE, patch=PATCH, max_tokens=MAX_TOKENS), _model)
