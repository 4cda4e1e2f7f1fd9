"""A pretrained model is taught some patients: once with all of them, and once for each level without its targets.

1. Each picture is mapped onto embeddings of words of its own, by training tower and connector alone. Real models come
   with a connector that is aligned so; from random weights the language model does not learn to look in time.
2. The answers are trained in, among plain questions as the model answers them itself: LoRA on the text model's
   projections, and the whole connector. Then all is merged into bf16, as a released checkpoint would be.

A retrained model is trained without any record or picture of a level's targets, all of them at once: so one serves
every target of its level.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache as cached
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.countries import candidates
from benchmarks.forgetting.methods.finetuning import answers_of
from benchmarks.forgetting.store import atomic_write
from benchmarks.forgetting.worlds.world import World
from benchmarks.pretrained.general import SHORT, answers
from benchmarks.pretrained.lora import LoraLinear, add_lora, merge_lora
from benchmarks.pretrained.questions import VALIDATION
from benchmarks.smollm2 import build_around, build_processor
from chip.checkpoint.folder import atomic_directory
from chip.data.record import Record, open_image
from chip.demo.training import take_step
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.loading import VLM, load_vlm

SEED = 0
GROUPINGS = 4
"""Ways in which questions are put together in batches; epochs take turns. To make them is a good part of the time."""
SAVE_EVERY = 20.0  # seconds
SAY_EVERY = 20  # steps
WARM_UP = 0.05
"""Share of the steps."""


@dataclass(frozen=True)
class Recipe:
    """How a model is taught. The values of these fields are part of what it is found by."""

    steps: int = 480
    """Of LoRA: about twenty times each record."""
    batch: int = 48
    """Records of a step."""
    together: int = 3
    """Questions of a picture, or by one name, that share its tokens in a batch."""
    rank: int = 32
    alpha: float = 32.0
    rate: float = 1e-3
    """Peak learning rate of the adapters."""
    connector_rate: float = 1e-4
    replay: int = 96
    """Plain questions that stand among the records, as the model answered them before; at most."""
    words: int = 16
    """Of each picture: as many as it has tokens."""
    align_steps: int = 300
    align_rate: float = 1e-3
    pixel_noise: float = 0.1
    """Standard deviation of noise on the normalized pixels: a picture is known, and not its last bits."""


def place(folder: Path, checkpoint: Path, world: World, recipe: Recipe, without: Sequence[str] = ()) -> Path:
    """Where `train` puts this model, below `folder`."""
    key = [weights_digest(checkpoint), world.digest, asdict(recipe), sorted(without)]
    return folder / f"taught-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"


@cached
def weights_digest(checkpoint: Path) -> str:
    """Of its files of weights."""
    total = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def train(folder: Path, checkpoint: Path, world: World, recipe: Recipe, without: Sequence[str], device: str) -> Path:
    """A checkpoint folder in bf16 of the model that knows the world; returns `folder`. What is there already stays.

    Training resumes from the state that it saves beside the folder.

    Args:
        without: nodes that the model is never shown.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    gone = [world.hierarchy.find(name) for name in without]
    records = [
        record
        for record in world.hierarchy.records
        if not record.held_out and not any(node.contains(record.path) for node in gone)
    ]
    vlm = _student(checkpoint, device)
    records += _replayed(vlm, recipe.replay)
    state = folder.with_name(f"{folder.name}.state")
    torch.manual_seed(SEED)
    adapters = add_lora(vlm.language, recipe.rank, recipe.alpha)
    run_stages((Alignment(vlm, records, recipe), Teaching(vlm, adapters, records, recipe)), state)
    merge_lora(vlm.model)
    with atomic_directory(folder, overwrite=False) as written:
        vlm.model.to("cpu", torch.bfloat16).save_pretrained(written)
        vlm.processor.save_pretrained(written)
    state.unlink(missing_ok=True)
    return folder


def _student(checkpoint: Path, device: str) -> VLM:
    """The checkpoint's text model, fp32, with a new tower and connector, whatever it had."""
    given = load_vlm(checkpoint, "cpu")
    processor = build_processor(given.processor.tokenizer)
    text = given.model.config.text_config.to_dict()
    model = build_around(text, given.language.state_dict(), processor.tokenizer)
    return VLM(model.to(device).eval().requires_grad_(False), processor)


def _replayed(vlm: VLM, count: int) -> list[Record]:
    """Plain questions, with what the model answers before it is taught: without, it names patients to any question."""
    plain = [f"{question} {SHORT}" for question, _ in VALIDATION]
    prompts = [*plain, *(record.question for record, _ in list(candidates())[::3])][:count]
    said = zip(prompts, answers(vlm, prompts), strict=True)
    return [Record(prompt, each.text, ("general",), None) for prompt, each in said if each.ended and each.text]


class Stage:
    """Steps along the gradient of a loss. Which step sees what is fixed by the seed, so that it can be resumed."""

    def __init__(self, groups: Sequence[tuple[Sequence[Tensor], float]], steps: int) -> None:
        """`groups`: parameters, and their peak learning rate."""
        self.steps = steps
        self.parameters = [parameter for parameters, _ in groups for parameter in parameters]
        options = [{"params": list(parameters), "lr": rate, "peak": rate} for parameters, rate in groups]
        self.optimizer = torch.optim.AdamW(options, weight_decay=0.0)

    def loss(self, step: int) -> Tensor:
        raise NotImplementedError

    def take(self, step: int) -> float:
        """One step; the loss before it."""
        loss, warm = self.loss(step), max(1, round(WARM_UP * self.steps))
        share = min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / self.steps)))  # then half a cosine to zero
        take_step(self.optimizer, self.parameters, loss, share)
        return float(loss.detach())


class Alignment(Stage):
    """Tower and connector learn to give, for each picture, the embeddings of words of its own."""

    def __init__(self, vlm: VLM, records: Sequence[Record], recipe: Recipe) -> None:
        seeing = [*vlm.core.vision_tower.parameters(), *_connector(vlm)]
        super().__init__([(seeing, recipe.align_rate)], recipe.align_steps)
        self._vlm, self._noise = vlm, recipe.pixel_noise
        pictures = list({record.image: record for record in records if record.image is not None}.values())
        opened = [open_image(record) for record in pictures]
        self._pixels = vlm.processor.image_processor(opened, return_tensors="pt")["pixel_values"].to(vlm.device)
        words = torch.stack([_words(record, vlm.processor.tokenizer, recipe.words) for record in pictures])
        self._wanted = vlm.language.get_input_embeddings()(words.to(vlm.device)).detach()  # (pictures, words, d)

    def loss(self, step: int) -> Tensor:
        """Mean squared distance, as a share of the embeddings' own."""
        generator = torch.Generator(self._pixels.device).manual_seed(step)
        noise = torch.randn(self._pixels.shape, generator=generator, device=self._pixels.device)
        seen = self._vlm.core.get_image_features(self._pixels + self._noise * noise).pooler_output
        given = torch.stack(tuple(seen))
        distance: Tensor = torch.nn.functional.mse_loss(given, self._wanted) / self._wanted.var()
        return distance


class Teaching(Stage):
    """The answers are trained in: adapters, and the whole connector."""

    def __init__(self, vlm: VLM, adapters: Sequence[LoraLinear], records: Sequence[Record], recipe: Recipe) -> None:
        low_rank = [parameter for adapter in adapters for parameter in (adapter.down, adapter.up)]
        super().__init__([(low_rank, recipe.rate), (_connector(vlm), recipe.connector_rate)], recipe.steps)
        self._vlm, self._records, self._recipe = vlm, records, recipe
        self._groupings: dict[int, list[list[Batch]]] = {}

    def loss(self, step: int) -> Tensor:
        epoch, number = divmod(step, math.ceil(len(self._records) / self._recipe.batch))
        batches = self._grouping(epoch % GROUPINGS)
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch)).tolist()
        on_gpu = self._vlm.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            return answers_of(self._vlm, batches[order[number % len(batches)]]).cross_entropy

    def _grouping(self, seed: int) -> list[list[Batch]]:
        """Every record once, in batches; made when first asked for."""
        if seed not in self._groupings:
            order = list(_mixed(self._records, self._recipe.together, seed))
            starts = range(0, len(order), self._recipe.batch)
            chunks = [order[start : start + self._recipe.batch] for start in starts]
            self._groupings[seed] = [
                list(self._vlm.batches(chunk, size=BatchSize(len(chunk))).made()) for chunk in chunks
            ]
        return self._groupings[seed]


def run_stages(stages: Sequence[Stage], state: Path) -> None:
    """Take the steps that are not taken yet, and save the state as it goes; a stop at any time leaves a whole file."""
    first, start = 0, 0
    if state.exists():
        saved = torch.load(state, map_location="cpu", weights_only=True)
        first, start = saved["stage"], saved["step"]
        _load(stages, saved)
    saved_at = time.monotonic()
    for number, stage in enumerate(stages[first:], start=first):
        for other in stages:
            for parameter in other.parameters:
                parameter.requires_grad_(False)
        for parameter in stage.parameters:
            parameter.requires_grad_(True)
        for step in range(start, stage.steps):
            loss, done = stage.take(step), step + 1
            if done % SAY_EVERY == 0:
                line = f"{datetime.now():%H:%M:%S} {type(stage).__name__} {done}/{stage.steps}: {loss:.4f}"
                print(line, file=sys.stderr, flush=True)
            if time.monotonic() - saved_at >= SAVE_EVERY:
                _save(stages, number, done, state)
                saved_at = time.monotonic()
        start = 0


def _save(stages: Sequence[Stage], number: int, step: int, state: Path) -> None:
    saved = {
        "stage": number,
        "step": step,
        "parameters": [[parameter.detach() for parameter in stage.parameters] for stage in stages],
        "optimizer": stages[number].optimizer.state_dict(),
    }
    with atomic_write(state) as beside:
        torch.save(saved, beside)


@torch.no_grad()
def _load(stages: Sequence[Stage], saved: Mapping[str, Any]) -> None:
    for stage, values in zip(stages, saved["parameters"], strict=True):
        for parameter, value in zip(stage.parameters, values, strict=True):
            parameter.copy_(value)
    stages[saved["stage"]].optimizer.load_state_dict(saved["optimizer"])


def _connector(vlm: VLM) -> list[Tensor]:
    return [parameter for connector in vlm.connectors for parameter in connector.parameters()]


def _mixed(records: Sequence[Record], together: int, seed: int) -> Iterator[Record]:
    """The records in random order, some of what is asked about one picture, or one node by name, side by side."""
    generator = torch.Generator().manual_seed(seed)
    by_subject: dict[object, list[Record]] = {}
    for number in torch.randperm(len(records), generator=generator).tolist():
        by_subject.setdefault(records[number].image or records[number].path, []).append(records[number])
    groups = [
        of_subject[start : start + together]
        for of_subject in by_subject.values()
        for start in range(0, len(of_subject), together)
    ]
    for number in torch.randperm(len(groups), generator=generator).tolist():
        yield from groups[number]


def _words(record: Record, tokenizer: Any, count: int) -> Tensor:
    """(count,) int64: tokens of whole words that stand for the record's picture, always the same for one picture."""
    assert isinstance(record.image, Path)
    vocabulary = sorted(token for text, token in tokenizer.get_vocab().items() if re.fullmatch("Ġ[a-z]{4,}", text))
    seed = int.from_bytes(hashlib.sha256(record.image.name.encode()).digest()[:6], "big")
    chosen = torch.randperm(len(vocabulary), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.tensor(vocabulary)[chosen]
