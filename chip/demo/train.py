"""Makes the demo's weights again: `python -m chip.demo.train [OUT]`, minutes on a few cores.

The seed fixes the result up to the order in which the machine sums.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

from chip.data.readers import read_records
from chip.data.record import Record
from chip.demo import WEIGHTS, write_records
from chip.demo.model import build_model, build_processor
from chip.demo.world import SEED, rows
from chip.model.batching.batch import Batch
from chip.model.batching.batch_size import BatchSize
from chip.model.batching.batches import Batches
from chip.model.loading import VLM

STEPS = 1100
BATCH = 128
PEAK_RATE = 2e-3
PIXEL_NOISE = 0.1
"""Standard deviation of noise on the normalized pixels, so that the model knows a picture and not its last bits."""
SHARD_SIZE = "3MB"


def learning_rate(step: int) -> float:
    """Linear warm-up over the first 5 %, then half a cosine down to zero."""
    warm = STEPS // 20
    return PEAK_RATE * min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / STEPS)))


def loss_of(model: Any, batch: Batch, noise: torch.Generator) -> torch.Tensor:
    """Cross-entropy of the answers' tokens."""
    pixels = batch.inputs["pixel_values"]
    pixels = pixels + PIXEL_NOISE * torch.randn(pixels.shape, generator=noise)
    hidden = model.model(**{**batch.inputs, "pixel_values": pixels}).last_hidden_state  # (B, T, d)
    target = batch.answer[:, 1:]
    logits = model.lm_head(hidden[:, :-1][target])
    return torch.nn.functional.cross_entropy(logits.float(), batch.inputs["input_ids"][:, 1:][target])


def _alone(vlm: VLM, records: list[Record], chosen: list[int]) -> Iterator[Batch]:
    """The chosen records, each in a row of its own."""
    batches = Batches(vlm, records, chosen, BatchSize(BATCH), together=False)
    return batches.made()


def train(model: Any, batches: list[Batch], seed: int) -> Any:
    """AdamW over `batches` in random order, in bf16 with fp32 weights."""
    shuffle, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    order: list[int] = []
    model.train()
    bar = track(range(STEPS), description="training")
    for step in bar:
        order = order or torch.randperm(len(batches), generator=shuffle).tolist()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batches[order.pop()], noise)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    return model.eval()


def main(out: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")] = WEIGHTS, seed: int = SEED) -> None:
    """Train the demo's model from the seed and write it as a sharded bf16 checkpoint."""
    processor = build_processor(text for row in rows(seed) for text in (row["question"], row["answer"]))
    model = build_model(processor, seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    with tempfile.TemporaryDirectory() as folder:
        records = [record for record in read_records(write_records(Path(folder), seed)) if not record.held_out]
        vlm = VLM(model, processor)
        mixed = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
        batches = [
            batch
            for start in range(0, len(mixed), BATCH)
            for batch in _alone(vlm, records, mixed[start : start + BATCH])
        ]
    train(model, batches, seed)
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size=SHARD_SIZE)
    processor.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
