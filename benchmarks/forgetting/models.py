"""Models that know a world, and models that never knew a part of it: trained once, kept outside the repository.

    python -m benchmarks.forgetting.models hospital llava [--seed N] [--device cuda]

trains what the learning gate asks, where it has not been trained yet, and shows the gate's figures.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache as remembered
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

from benchmarks.forgetting.families import FAMILIES
from benchmarks.forgetting.training import Corpus, Recipe, Training
from benchmarks.forgetting.worlds import World, build
from chip.data.chance import mean_over
from chip.data.record import Record
from chip.errors import RunError
from chip.model.loading import VLM, default_device, load_vlm
from chip.model.processors import load_processor
from chip.model.scoring import score_records

RECIPES = {"llava": Recipe(), "qwen2_5_vl": Recipe(steps=800)}  # 5 minutes on two cores
WORLD_RECIPES = {("ward", "llava"): Recipe(steps=400, batch=96)}
"""For worlds that take less."""
SAVE_EVERY = 100  # steps
SHARD_SIZE = "3MB"
WORLD_SEED = 0

LEARNED = {"train": 0.95, "paraphrased": 0.9}
"""Split -> the share of its questions that a model must answer exactly: nobody forgets what was never known."""
MARGIN = 0.5
"""By so much, in exact match on each target, must a model beat one that was trained without the target."""


def trained(
    world: World,
    family: str,
    seed: int,
    without: Sequence[str] = (),
    device: str | None = None,
    recipe: Recipe | None = None,
) -> Path:
    """A checkpoint folder in the Hugging Face format, of a model trained on the world's `train` records alone.

    It is trained once, and found again in `~/.cache/chip`, or `CHIP_CACHE`, by all that makes it what it is. After a
    stop the training goes on from the last state that was written.

    Args:
        without: nodes whose records it is not trained on.
        device: where it is trained; by default a GPU, if there is one.
        recipe: by default the family's own.
    """
    recipe = recipe or _recipe(world, family)
    folder = place(world, family, seed, without, recipe)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        texts = _texts(world)
        processor = _processor(family, texts)
        model = FAMILIES[family].model(processor, seed)
        vlm = VLM(model.to(device or default_device()), processor)
        state = folder.with_name(f"{folder.name}.state.safetensors")
        _train(vlm, _kept(world, without), recipe, seed, state)
        _write(vlm, texts, family, folder)
        state.unlink(missing_ok=True)
    return folder


def place(world: World, family: str, seed: int, without: Sequence[str] = (), recipe: Recipe | None = None) -> Path:
    """Where `trained` keeps this model; the folder does not exist before it is trained."""
    key = _key(world, dict(_config(family, _texts(world))), recipe or _recipe(world, family), without)
    return cache() / "forgetting" / f"{world.name}-{world.seed}" / f"{family}-{seed}-{key}"


@dataclass(frozen=True)
class Gate:
    """Whether a model knows its world well enough that forgetting can be judged by it."""

    learned: Mapping[str, float]
    """Split -> exact match, over all records."""
    margins: Mapping[str, float]
    """Target -> exact match on what only the target knows, above that of the model trained without."""

    @property
    def faults(self) -> tuple[str, ...]:
        """What falls short, one line each."""
        return (
            *(
                f"{split} questions: {self.learned[split]:.3f} are answered, {least} must be"
                for split, least in LEARNED.items()
                if self.learned[split] < least
            ),
            *(
                f"{target}: answered by {margin:.3f} more than without it, {MARGIN} is the least"
                for target, margin in self.margins.items()
                if margin < MARGIN
            ),
        )

    def check(self) -> None:
        """
        Raises:
            RunError: there is a fault.
        """
        if self.faults:
            raise RunError(f"the model does not know its world ({'; '.join(self.faults)}); train it longer")


def gate(world: World, family: str, seed: int, device: str | None = None, levels: Sequence[str] | None = None) -> Gate:
    """Ask the trained model everything, and for each level the one that was trained without any of its targets.

    Args:
        levels: by default all that the world has.
    """
    asked = [number for number, record in enumerate(world.hierarchy.records) if record.split in LEARNED]
    known = _exact_match(world, asked, trained(world, family, seed, device=device), device)
    margins = {}
    for targets in (world.targets[level] for level in levels or world.targets):
        unknown = _exact_match(world, asked, trained(world, family, seed, targets, device), device)
        for target in targets:
            own = set(asked).intersection(world.groups(world.hierarchy.find(target))["target"])
            margins[target] = mean_over(known, own) - mean_over(unknown, own)
    by_split = {split: [i for i in asked if world.hierarchy.records[i].split == split] for split in LEARNED}
    return Gate({split: mean_over(known, indices) for split, indices in by_split.items()}, margins)


def _exact_match(world: World, asked: Sequence[int], checkpoint: Path, device: str | None) -> torch.Tensor:
    """(records,) fp64; NaN where not asked."""
    records = world.hierarchy.records
    result = torch.full((len(records),), torch.nan, dtype=torch.float64)
    result[list(asked)] = score_records(load_vlm(checkpoint, device), [records[number] for number in asked]).exact_match
    return result


def cache() -> Path:
    """Where trained models are kept."""
    return Path(os.environ.get("CHIP_CACHE") or Path.home() / ".cache" / "chip")


def _key(world: World, config: dict[str, Any], recipe: Recipe, without: Iterable[str]) -> str:
    config.pop("transformers_version")
    what = [world.digest, config, asdict(recipe), sorted(without)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _kept(world: World, without: Iterable[str]) -> list[Record]:
    gone = [world.hierarchy.find(name) for name in without]
    return [
        record
        for record in world.hierarchy.records
        if not record.held_out and not any(node.contains(record.path) for node in gone)
    ]


def _recipe(world: World, family: str) -> Recipe:
    return WORLD_RECIPES.get((world.name, family)) or RECIPES[family]


def _texts(world: World) -> tuple[str, ...]:
    """Of all records: a model that is trained without some reads the same tokens."""
    return tuple(text for record in world.hierarchy.records for text in (record.question, record.answer))


@remembered
def _config(family: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """Of the family's model, whatever its seed."""
    config: dict[str, Any] = FAMILIES[family].model(_processor(family, texts), 0).config.to_diff_dict()
    return config


def _processor(family: str, texts: Sequence[str]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        FAMILIES[family].write_processor(Path(folder), texts)
        return load_processor(Path(folder))


def _train(vlm: VLM, records: Sequence[Record], recipe: Recipe, seed: int, state: Path) -> None:
    vlm.model.train().set_attn_implementation("eager")  # rows are too short for fused attention to pay
    training = Training(vlm, Corpus(vlm, records), recipe, seed)
    if state.exists():
        training.resume(state)
    for _ in track(range(training.step, recipe.steps), description=f"training {state.name.partition('.')[0]}"):
        training.advance()
        if training.step % SAVE_EVERY == 0:
            training.save(state)


def _write(vlm: VLM, texts: Sequence[str], family: str, folder: Path) -> None:
    """Beside the folder, then renamed: there is a whole one or none."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        made = Path(beside) / folder.name
        vlm.model.to(torch.bfloat16).save_pretrained(made, max_shard_size=SHARD_SIZE)
        FAMILIES[family].write_processor(made, texts)
        made.rename(folder)


def main(
    world: Annotated[str, typer.Argument(help="hospital or clinic")],
    family: Annotated[str, typer.Argument(help="llava or qwen2_5_vl")],
    seed: Annotated[int, typer.Option(help="Of the model; the world's own is fixed.")] = 0,
    device: Annotated[str | None, typer.Option(help="Where to train and to ask; by default a GPU, if any.")] = None,
) -> None:
    """Train, ask, and show what the gate says."""
    with tempfile.TemporaryDirectory() as folder:
        found = gate(build(world, WORLD_SEED, Path(folder)), family, seed, device)
    print(json.dumps(asdict(found), indent=1))
    found.check()


if __name__ == "__main__":
    typer.run(main)
