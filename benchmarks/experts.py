"""A small hospital in a mixture of experts, and in its dense twin: is as much forgotten, and as much kept?

    python -m benchmarks.experts --cache DIR [--json FILE] [--only dense|experts|...] [--tokens 4|16] [--rank R]
                                [--method shielded|combined|...]

Two models learn the same world from the same seed: a Qwen3-VL, and one whose MLPs are four experts of half the width,
of which the router takes two. So do two of Qwen3.5, the second with four experts of a quarter of the width and a shared
one of half of it. Each patient is then forgotten by itself, by the linear method unless told otherwise, since gates
hardly touch experts, and the written checkpoint is asked in words that nothing was trained on. Models and rows that are
there are kept.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import product
from math import inf, isqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import transformers
import typer

import chip
from benchmarks.drawn.training import learn
from benchmarks.forgetting.families import Family, write_qwen_processor
from benchmarks.hospitals import write_hospital, write_learned
from benchmarks.qwen import MERGE, Shape, VisionShape
from benchmarks.reporting import RESULTS, known_rows, store_rows
from chip.cli.console import quiet_libraries
from chip.demo.images import SIZE
from chip.demo.kinds import INSTITUTION_KINDS, PATIENT_KINDS, STUDY_KINDS
from chip.errors import ChipWarning
from chip.methods import Method, Shielded, make_method

SEED, STEPS = 17, 150
SIZES, KINDS = (3, 4, 2), (INSTITUTION_KINDS[:2], PATIENT_KINDS[:2], STUDY_KINDS[:4])
TOKENS = (4, 16)
"""Of a picture: 39 pictures have fewer together than the connector has columns, 384, or more."""
_ROUTED = {"num_experts": 4, "num_experts_per_tok": 2}
_ATTENDING: dict[str, Any] = {
    "layer_types": ["full_attention"] * 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5]}
    | {"partial_rotary_factor": 1.0},
}
"""Qwen3.5 without its linear attention, which would run each question by itself."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("Qwen3VL", {}),
    "experts": ("Qwen3VLMoe", _ROUTED | {"moe_intermediate_size": 256}),
    "dense Qwen3.5": ("Qwen3_5", _ATTENDING),
    "shared expert": (
        "Qwen3_5Moe",
        _ATTENDING | _ROUTED | {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 256},
    ),
}
"""Name -> its classes, and what its text model has beside the dense one's."""
TARGETS = tuple(f"patient_{number}" for number in (2, 5, 8, 11, 1, 3, 4, 6, 7, 9, 10, 12))
GROUPS = ("target", "siblings", "other")
OF_A_MEAN = ("tokens", "model", "method", "rank")
COLUMNS = (*OF_A_MEAN, "target", "strength", "before", "after")


def family_of(name: str, tokens: int) -> Family:
    """Models of this name, which see a picture as so many tokens."""
    patch = SIZE // (MERGE * isqrt(tokens))
    return Family(partial(write_qwen_processor, side=SIZE, patch=patch), partial(_untrained, name, patch))


def _untrained(name: str, patch: int, processor: Any, seed: int) -> Any:
    """Without the features that Qwen3-VL adds to its first layers, which training on embeddings would not reach."""
    classes, experts = MODELS[name]
    heads, vision = 4, VisionShape(2, 96, 192, 4)
    like = Shape(3, 128, 512, heads, heads, len(processor.tokenizer), vision).config({}, {}).to_dict()
    text = {key: like["text_config"][key] for key in _OF_TEXT} | {"head_dim": 128 // heads, "initializer_range": 0.08}
    seen = {key: like["vision_config"][key] for key in ("depth", "hidden_size", "intermediate_size", "num_heads")} | {
        "out_hidden_size": 128,
        "patch_size": patch,
        "spatial_merge_size": MERGE,
        "num_position_embeddings": (SIZE // patch) ** 2,
        "deepstack_visual_indexes": [],
    }
    torch.manual_seed(seed)
    config = getattr(transformers, f"{classes}Config")(
        text_config=text | experts, vision_config=seen, **{key: like[key] for key in _OF_TOKENS}
    )
    return getattr(transformers, f"{classes}ForConditionalGeneration")(config)


_OF_TEXT = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id"),
)
_OF_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "tie_word_embeddings")


def measure(checkpoint: Path, records: Path, target: str, method: Method, rank: int | None) -> dict[str, Any]:
    """Forget the target, in at most so many directions a weight: exact match on paraphrased questions, by group."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", ChipWarning)
        report = chip.edit(
            checkpoint,
            [target],
            records=records,
            out=Path(folder) / "edited",
            method=method,
            device="cpu",
            batch_size=64,
            rank=rank,
            accept=True,
        )
    asked = {group: report.groups[group]["paraphrased"].exact_match for group in GROUPS}
    return {
        "strength": None if report.choice is None else report.choice.value,
        "before": [asked[group].before for group in GROUPS],
        "after": [asked[group].after for group in GROUPS],
    }


def main(
    cache: Annotated[Path, typer.Option(help="Folder for the world and the models.")],
    json_file: Annotated[Path, typer.Option("--json", help="File for the rows.")] = RESULTS / "experts.json",
    only: Annotated[list[str] | None, typer.Option(help="Model; repeat. By default all.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Of a picture: 4 or 16; by default both.")] = None,
    methods: Annotated[list[str] | None, typer.Option("--method", help="Repeat. By default shielded.")] = None,
    ranks: Annotated[list[int] | None, typer.Option("--rank", help="Of an edit; repeat. By default any.")] = None,
    most: Annotated[int, typer.Option("--targets", help="Patients to forget, at most.")] = len(TARGETS),
) -> None:
    """Train, forget, and print means over the targets."""
    quiet_libraries()
    cache.mkdir(parents=True, exist_ok=True)
    records = write_hospital(cache / "world", SIZES, KINDS, SEED)
    rows = known_rows(json_file)
    train = partial(learn, steps=STEPS, seed=SEED, seconds=inf)
    all_ranks: list[int | None] = [*(ranks or ())] or [None]
    for size, name, method, rank in product(tokens or TOKENS, only or MODELS, methods or [Shielded.name], all_ranks):
        checkpoint = write_learned(cache / f"{name}-{size}", records, family_of(name, size), SEED, train)
        for target in TARGETS[:most]:
            about = {"tokens": size, "model": name, "method": method, "rank": rank, "target": target}
            if not any(about.items() <= row.items() for row in rows):
                rows.append(about | measure(checkpoint, records, target, make_method(method, {}), rank))
                print(json.dumps(rows[-1]), flush=True)
                store_rows(json_file, COLUMNS, rows, "cpu", groups=GROUPS, seed=SEED)
    _print_means(rows)


def _print_means(rows: Sequence[dict[str, Any]]) -> None:
    for kind in sorted({tuple(row[key] for key in OF_A_MEAN) for row in rows}, key=str):
        own = [row for row in rows if tuple(row[key] for key in OF_A_MEAN) == kind]
        means = (
            f"{group} {_mean(own, 'before', i):.2f} → {_mean(own, 'after', i):.2f}" for i, group in enumerate(GROUPS)
        )
        size, name, method, rank = kind
        print(f"{size} tokens, {name}, {method}, rank {rank or 'any'}: {', '.join(means)}")


def _mean(rows: Sequence[dict[str, Any]], which: str, group: int) -> float:
    return float(sum(row[which][group] for row in rows) / len(rows))


if __name__ == "__main__":
    typer.run(main)
