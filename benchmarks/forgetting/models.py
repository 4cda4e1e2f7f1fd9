"""Models that know a world, and models that never knew a part of it: trained once, cached outside the repository."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache as cached
from math import inf
from pathlib import Path
from typing import Any

import torch

from benchmarks.drawn.training import BATCH, learn
from benchmarks.forgetting.families import FAMILIES, Family
from benchmarks.forgetting.worlds import World
from chip.checkpoint.folder import atomic_directory
from chip.data.record import Record
from chip.demo.corpus import Recipe
from chip.demo.training import train
from chip.model.loading import VLM, default_device
from chip.model.processors import load_processor

RECIPES = {"llava": Recipe(), "qwen2_5_vl": Recipe(steps=800)}  # 5 minutes on two cores
WORLD_RECIPES = {("ward", "llava"): Recipe(steps=160, batch=BATCH)}
"""For worlds that take less; they are learned by Muon, in one go."""
SHARD_SIZE = "3MB"
WORLD_SEED = 0


def trained(
    world: World,
    family: str,
    seed: int,
    without: Sequence[str] = (),
    device: str | None = None,
    recipe: Recipe | None = None,
) -> Path:
    """A checkpoint folder in the Hugging Face format, of a model trained on the world's `train` records alone.

    It is trained once, and cached in `~/.cache/chip`, or `CHIP_CACHE`, under all that makes it what it is. After a
    stop the training resumes from the last state that was written.

    Args:
        without: nodes whose records it is not trained on.
        device: where it is trained; by default a GPU, if there is one.
        recipe: by default the family's own.
    """
    fast, recipe = recipe is None and (world.name, family) in WORLD_RECIPES, recipe or _recipe(world, family)
    folder = place(world, family, seed, without, recipe)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        texts = texts_of(world.hierarchy.records)
        vlm = untrained(texts, FAMILIES[family], seed, device)
        state = folder.with_name(f"{folder.name}.state.safetensors")
        if fast:
            learn(vlm, remaining(world, without), recipe.steps, seed, inf)
        else:
            train(vlm, remaining(world, without), recipe, seed, state)
        write_model(vlm, texts, FAMILIES[family], folder)
        state.unlink(missing_ok=True)
    return folder


def untrained(texts: Sequence[str], family: Family, seed: int, device: str | None = None) -> VLM:
    """A model that reads the words of these texts and has learned nothing."""
    processor = _processor(family, texts)
    return VLM(family.model(processor, seed).to(device or default_device()), processor)


def place(world: World, family: str, seed: int, without: Sequence[str] = (), recipe: Recipe | None = None) -> Path:
    """Where `trained` caches this model; the folder does not exist before it is trained."""
    key = _key(
        world, dict(_config(family, texts_of(world.hierarchy.records))), recipe or _recipe(world, family), without
    )
    return cache() / "forgetting" / f"{world.name}-{world.seed}" / f"{family}-{seed}-{key}"


def cache() -> Path:
    """Where trained models and results are kept."""
    return Path(os.environ.get("CHIP_CACHE") or Path.home() / ".cache" / "chip")


def _key(world: World, config: dict[str, Any], recipe: Recipe, without: Iterable[str]) -> str:
    config.pop("transformers_version")
    key = [world.digest, config, asdict(recipe), sorted(without)]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def remaining(world: World, without: Iterable[str]) -> list[Record]:
    """What a model is trained on that never sees the nodes `without`."""
    gone = [world.hierarchy.find(name) for name in without]
    return [
        record
        for record in world.hierarchy.records
        if not record.held_out and not any(node.contains(record.path) for node in gone)
    ]


def _recipe(world: World, family: str) -> Recipe:
    return WORLD_RECIPES.get((world.name, family)) or RECIPES[family]


def texts_of(records: Iterable[Record]) -> tuple[str, ...]:
    """What a tokenizer learns from. Of all records: a model that is trained without some reads the same tokens."""
    return tuple(text for record in records for text in (record.question, record.answer))


@cached
def _config(family: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """Of the family's model, whatever its seed."""
    config: dict[str, Any] = FAMILIES[family].model(_processor(FAMILIES[family], texts), 0).config.to_diff_dict()
    return config


def _processor(family: Family, texts: Sequence[str]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        family.write_processor(Path(folder), texts)
        return load_processor(Path(folder))


def write_model(vlm: VLM, texts: Sequence[str], family: Family, folder: Path) -> None:
    """A checkpoint in bf16, a whole one or none."""
    with atomic_directory(folder) as written:
        vlm.model.to(torch.bfloat16).save_pretrained(written, max_shard_size=SHARD_SIZE)
        family.write_processor(written, texts)
