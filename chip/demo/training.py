"""Training a small model on records: a loop that resumes where it was stopped."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from chip.data.record import Record
from chip.demo.corpus import Batch, Corpus, Recipe
from chip.model.loading import VLM

LARGEST_GRADIENT = 1.0
"""Norm to which gradients are clipped."""
SAVE_EVERY = 100  # steps
WEIGHT, MOMENTS = "weight.", {"mean.": "exp_avg", "square.": "exp_avg_sq"}
"""Prefixes of the names in a saved state, and what the optimizer calls its moments."""


class Trainer:
    """Steps of an optimizer, in bf16 with fp32 weights unless told otherwise.

    The seed and a step's number decide what happens in it, so that a state is weights, moments and a number.
    """

    def __init__(
        self,
        vlm: VLM,
        corpus: Corpus,
        recipe: Recipe,
        seed: int,
        optimizer: torch.optim.Optimizer | None = None,
        dtype: torch.dtype = torch.bfloat16,
        token_noise: float = 0.0,
    ) -> None:
        """
        Args:
            optimizer: of the model's parameters; by default AdamW, the one whose state can be saved.
            dtype: what is computed in.
            token_noise: share of the words of prompts that are replaced by any others, so that a model that is asked
                in words it has never read goes by those that it knows.
        """
        self.recipe, self.step, self._dtype = recipe, 0, dtype
        self._vlm, self._corpus, self._seed, self._token_noise = vlm, corpus, seed, token_noise
        self._named = dict(vlm.model.named_parameters())
        self._optimizer = optimizer or adamw(self._named.values(), recipe.weight_decay)
        self._epoch, self._batches = 0, self._order(0)

    def advance(self, progress: float = 0.0) -> Tensor:
        """Take one step; returns the loss before it.

        Args:
            progress: how far the training is by another measure than steps, 0 to 1; the rate goes by what is more.
        """
        batch = self._corpus.batch(self._next())
        device = batch.pixels.device
        generator = torch.Generator(device).manual_seed(self._mixed(self.step, stream=1))
        noise = torch.randn(batch.pixels.shape, generator=generator, device=device)
        if self._token_noise:
            batch = replace(batch, ids=self._reworded(batch, generator))
        with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
            loss = loss_of(self._vlm, replace(batch, pixels=batch.pixels + self.recipe.pixel_noise * noise))
        take_step(
            self._optimizer, self._named.values(), loss, self.recipe.rate(max(self.step, progress * self.recipe.steps))
        )
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

    def _reworded(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """(B, T) int64: the batch's ids, some of the prompts' words replaced. Special tokens come first in small
        vocabularies."""
        tokenizer, ids = self._vlm.processor.tokenizer, batch.ids
        first = 1 + max(tokenizer.added_tokens_decoder)
        others = torch.randint(first, len(tokenizer), ids.shape, generator=generator, device=ids.device)
        replaced = torch.rand(ids.shape, generator=generator, device=ids.device) < self._token_noise
        return torch.where(replaced & (ids >= first) & ~batch.answer, others, ids)

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


def adamw(parameters: Iterable[Tensor], weight_decay: float) -> torch.optim.AdamW:
    """Of all these; norms and biases have no weight decay."""
    known = list(parameters)
    matrices, others = ([p for p in known if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def take_step(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], loss: Tensor, rate: float) -> None:
    """One step of the optimizer at this learning rate, along the clipped gradient of `loss` to the parameters.

    A group of parameters that has a `peak` goes by that share of it.
    """
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("peak", 1.0)
    torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
    optimizer.step()


def train(
    vlm: VLM,
    records: Sequence[Record],
    recipe: Recipe,
    seed: int,
    state: Path | None = None,
) -> None:
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
        attention_mask=_visible(vlm, batch) if batch.both_ways else batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state  # (B, T, d)
    target = batch.answer[:, 1:]
    logits = vlm.model.lm_head(hidden[:, :-1][target])
    return torch.nn.functional.cross_entropy(logits.float(), batch.ids[:, 1:][target])


def _visible(vlm: VLM, batch: Batch) -> dict[str, Tensor]:
    """Kind of layer -> (B, 1, T, T) fp32, added to the scores: a picture's tokens see each other, all others what is
    before them. No row is longer than what a layer with a window sees."""
    image = batch.ids == vlm.image_token_id
    allowed = batch.mask[:, None].bool().expand(-1, image.shape[1], -1).tril() | (image[:, None] & image[..., None])
    scores = torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return dict.fromkeys(vlm.language.config.layer_types, scores[:, None])


def _embedded(vlm: VLM, batch: Batch) -> Tensor:
    """(B, T, d): the text, and each record's picture in its place."""
    text: Tensor = vlm.language.get_input_embeddings()(batch.ids)
    if not len(batch.pixels):
        return text
    pixels, options = batch.pixels, {}
    if pixels.ndim == 3:  # Qwen: a row for each patch, and how many there are down and across
        side = math.isqrt(pixels.shape[1])
        options["image_grid_thw"] = torch.tensor([[1, side, side]] * len(pixels), device=pixels.device)
    seen = vlm.core.get_image_features(pixels.flatten(0, 1), **options).pooler_output
    place = (batch.ids == vlm.image_token_id)[..., None]
    return text.masked_scatter(place, torch.stack(tuple(seen))[batch.picture].to(text.dtype))
