"""Training a small model on records: all of them as tensors, and a loop that resumes where it was stopped."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from chip.data.record import Record
from chip.model.loading import VLM

LARGEST_GRADIENT = 1.0
"""Norm to which gradients are clipped."""
SAVE_EVERY = 100  # steps
WEIGHT, MOMENTS = "weight.", {"mean.": "exp_avg", "square.": "exp_avg_sq"}
"""Prefixes of the names in a saved state, and what the optimizer calls its moments."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    The names and values of these fields are part of what a trained model is found by: a renamed one is trained anew.
    """

    steps: int = 1000
    batch: int = 128
    together: int = 2
    """Questions of a picture that stand in one batch."""
    sorted_batches: int = 4
    """As many are drawn at a time and sorted by length."""
    jitter: float = 6.0
    """Tokens by which a record may be taken for longer than it is, so that those that stand together change."""
    peak_rate: float = 2e-3
    warm_up: float = 0.05
    """Share of the steps."""
    weight_decay: float = 0.1
    """Of matrices; norms and biases have none."""
    pixel_noise: float = 0.1
    """Standard deviation of noise on the normalized pixels, so that a model knows a picture and not its last bits."""

    def rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        warm = max(1, round(self.warm_up * self.steps))
        return self.peak_rate * min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / self.steps)))


@dataclass(frozen=True)
class Batch:
    """Some records, each in a row of its own, and the pictures that they are about."""

    ids: Tensor
    """(B, T) int64"""
    mask: Tensor
    """(B, T) int64: 1 where there is a token, padding on the right"""
    positions: Tensor
    """(..., B, T) int64"""
    answer: Tensor
    """(B, T) bool: the answer's tokens, and what ends its turn"""
    pixels: Tensor
    """(pictures, entries, ...): each picture once"""
    picture: Tensor
    """(B,) int64: which of the pictures a record is about"""


class Corpus:
    """Records as tensors on the model's device. Every record has a picture, and all pictures have one size."""

    def __init__(self, vlm: VLM, records: Sequence[Record]) -> None:
        first = {record.image: number for number, record in reversed(list(enumerate(records)))}
        place = {image: number for number, image in enumerate(first)}
        heads = vlm.prompts.inputs([records[number] for number in first.values()])
        rows = vlm.prompts.inputs(records)
        answers = torch.tensor([prompt.answer for prompt in vlm.prompts.read(records)])
        self._lengths = rows["attention_mask"].sum(1)
        self._picture = torch.tensor([place[record.image] for record in records])
        at = torch.arange(rows["input_ids"].shape[1])
        answer = (at >= (self._lengths - answers)[:, None]) & (at < self._lengths[:, None])
        self._pixels = heads["pixel_values"].view(len(first), -1, *heads["pixel_values"].shape[1:]).to(vlm.device)
        self._positions = vlm.positions(rows).to(vlm.device)
        self._ids, self._mask, self._answer = (
            value.to(vlm.device) for value in (rows["input_ids"], rows["attention_mask"], answer)
        )

    def order(self, recipe: Recipe, generator: torch.Generator) -> list[Tensor]:
        """Every record once, as batches of indices in random order.

        Some questions of a picture stay together, so that the vision tower sees the picture once for them; and
        questions of like length, so that little is computed for padding.
        """
        jitter = recipe.jitter * torch.rand(len(self._lengths), generator=generator)
        by_length = (self._lengths + jitter).argsort()
        groups = [
            group
            for picture in range(len(self._pixels))
            for group in torch.split(by_length[self._picture[by_length] == picture], recipe.together)
        ]
        mixed = [groups[number] for number in torch.randperm(len(groups), generator=generator)]
        each = recipe.batch // recipe.together
        batches = []
        for at in range(0, len(mixed), recipe.sorted_batches * each):
            drawn = sorted(
                mixed[at : at + recipe.sorted_batches * each], key=lambda group: int(self._lengths[group].max())
            )
            batches += [torch.cat(drawn[start : start + each]) for start in range(0, len(drawn), each)]
        return [batches[number] for number in torch.randperm(len(batches), generator=generator)]

    def batch(self, indices: Tensor) -> Batch:
        """The records at `indices`, without the padding that none of them needs."""
        longest = int(self._lengths[indices].max())
        pictures, picture = torch.unique(self._picture[indices], return_inverse=True)
        device = self._ids.device
        rows = indices.to(device)
        return Batch(
            self._ids[rows, :longest],
            self._mask[rows, :longest],
            self._positions[..., rows, :longest],
            self._answer[rows, :longest],
            self._pixels[pictures.to(device)],
            picture.to(device),
        )


class Trainer:
    """AdamW in bf16 with fp32 weights.

    The seed and a step's number decide what happens in it, so that a state is weights, moments and a number.
    """

    def __init__(self, vlm: VLM, corpus: Corpus, recipe: Recipe, seed: int) -> None:
        self.recipe, self.step = recipe, 0
        self._vlm, self._corpus, self._seed = vlm, corpus, seed
        self._named = dict(vlm.model.named_parameters())
        matrices = [parameter for parameter in self._named.values() if parameter.ndim > 1]
        others = [parameter for parameter in self._named.values() if parameter.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            fused=True,
        )
        self._epoch, self._batches = 0, self._order(0)

    def advance(self) -> Tensor:
        """Take one step; returns the loss before it."""
        batch = self._corpus.batch(self._next())
        device = batch.pixels.device
        generator = torch.Generator(device).manual_seed(self._mixed(self.step, stream=1))
        noise = torch.randn(batch.pixels.shape, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(self._vlm, replace(batch, pixels=batch.pixels + self.recipe.pixel_noise * noise))
        take_step(self._optimizer, self._named.values(), loss, self.recipe.rate(self.step))
        self.step += 1
        return loss.detach()

    def save(self, file: Path) -> None:
        """Write the state beside `file`, then rename: a stop at any time leaves a whole file, the old or the new."""
        tensors = {f"{WEIGHT}{name}": parameter.detach() for name, parameter in self._named.items()}
        for name, parameter in self._named.items():
            state = self._optimizer.state.get(parameter, {})  # none for what no gradient reaches
            tensors |= {f"{moment}{name}": state[key] for moment, key in MOMENTS.items() if key in state}
        beside = file.with_name(f"{file.name}.{os.getpid()}")
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, beside, {"step": str(self.step)}
        )
        beside.replace(file)

    @torch.no_grad()
    def resume(self, file: Path) -> None:
        """Go on from a state that `save` wrote, as if there had been no stop."""
        with safe_open(file, "pt") as state:
            self.step = int(state.metadata()["step"])
            names = set(state.keys())
            for name, parameter in self._named.items():
                parameter.copy_(state.get_tensor(f"{WEIGHT}{name}"))
                moments = {key: f"{moment}{name}" for moment, key in MOMENTS.items() if f"{moment}{name}" in names}
                if moments:
                    device = parameter.device
                    self._optimizer.state[parameter] = {
                        "step": torch.tensor(float(self.step), device=device),
                        **{key: state.get_tensor(stored).to(device) for key, stored in moments.items()},
                    }

    def _next(self) -> Tensor:
        epoch, number = divmod(self.step, len(self._batches))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._order(epoch)
        return self._batches[number]

    def _order(self, epoch: int) -> list[Tensor]:
        return self._corpus.order(self.recipe, torch.Generator().manual_seed(self._mixed(epoch, stream=0)))

    def _mixed(self, number: int, stream: int) -> int:
        """A seed of its own for each epoch's order and each step's noise."""
        return (self._seed << 32) + (number << 1) + stream


def take_step(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], loss: Tensor, rate: float) -> None:
    """One step of the optimizer at this learning rate, along the clipped gradient of `loss` to the parameters."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for group in optimizer.param_groups:
        group["lr"] = rate
    torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
    optimizer.step()


def train(vlm: VLM, records: Sequence[Record], recipe: Recipe, seed: int, state: Path | None = None) -> None:
    """Train the model in place on the answers of `records`.

    Args:
        state: file that the training is saved to as it goes, and that it resumes from if it is there.
    """
    vlm.model.train().set_attn_implementation("eager")  # rows are too short for fused attention to pay
    trainer = Trainer(vlm, Corpus(vlm, records), recipe, seed)
    if state is not None and state.exists():
        trainer.resume(state)
    for _ in track(range(trainer.step, recipe.steps), description="training"):
        trainer.advance()
        if state is not None and trainer.step % SAVE_EVERY == 0:
            trainer.save(state)


def loss_of(vlm: VLM, batch: Batch) -> Tensor:
    """Cross-entropy of the answers' tokens, as the model itself computes it but for the pictures, each seen once."""
    hidden = vlm.language(
        inputs_embeds=_embedded(vlm, batch),
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state  # (B, T, d)
    target = batch.answer[:, 1:]
    logits = vlm.model.lm_head(hidden[:, :-1][target])
    return torch.nn.functional.cross_entropy(logits.float(), batch.ids[:, 1:][target])


def _embedded(vlm: VLM, batch: Batch) -> Tensor:
    """(B, T, d): the text, and each record's picture in its place."""
    pixels, options = batch.pixels, {}
    if pixels.ndim == 3:  # Qwen: a row for each patch, and how many there are down and across
        side = math.isqrt(pixels.shape[1])
        options["image_grid_thw"] = torch.tensor([[1, side, side]] * len(pixels), device=pixels.device)
    seen = vlm.core.get_image_features(pixels.flatten(0, 1), **options).pooler_output
    text: Tensor = vlm.language.get_input_embeddings()(batch.ids)
    place = (batch.ids == vlm.image_token_id)[..., None]
    return text.masked_scatter(place, torch.stack(tuple(seen))[batch.picture].to(text.dtype))
