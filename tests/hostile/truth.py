"""What the right values are, found without chip: by safetensors, transformers and Python's own JSON."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from chip.model.processors import load_processor
from tests.hostile.runner import End

transformers.logging.disable_progress_bar()

LEVELS = ("institution", "patient", "study", "section")
RELATIVE = 1e-3  # an answer's probability: fp32, other batches


def check_values(folder: Path, arguments: Sequence[str], end: End) -> None:
    """That what a command has printed is so."""
    match arguments[0]:
        case "tree":
            _check_tree(folder, end.out)
        case "inspect":
            _check_inspection(folder / "ckpt", json.loads(end.out))
        case "edit":
            report = json.loads(end.out)
            trained = report["groups"]["target"]["trained"]
            _check_probability(folder, trained["answer_probability"]["before"])
            assert all(0 <= change < math.inf for change in report["relative_change"].values())
        case "eval":
            rows = json.loads(end.out)["rows"]
            wanted = ("target", "trained", "answer_probability", "none")
            (value,) = (r["value"] for r in rows if (r["group"], r["split"], r["measure"], r["attack"]) == wanted)
            _check_probability(folder, value)
        case "diff":
            assert json.loads(end.out)["equal"] is _same_tensors(folder / "ckpt", folder / "other")
        case "verify":
            assert json.loads(end.out)["good"] is True


def rows_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "records.jsonl").read_bytes().decode("utf-8-sig")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _check_tree(folder: Path, out: str) -> None:
    rows = rows_of(folder)
    assert out.startswith(f"{len(rows):,} records\n")
    counts: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        path = [row[level] for level in LEVELS if row.get(level) is not None]
        counts.update(tuple(path[: depth + 1]) for depth in range(len(path)))
    lines = [line.lstrip("│├└─ \xa0") for line in out.splitlines()]
    for (*_, name), count in counts.items():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
        assert f"{shown} {count:,}" in lines


def _check_inspection(ckpt: Path, report: dict[str, Any]) -> None:
    assert report["family"] == json.loads((ckpt / "config.json").read_text(encoding="utf-8"))["model_type"]
    assert report["parameters"] == sum(tensor.numel() for tensor in _tensors(ckpt).values())


def _tensors(ckpt: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in ckpt.glob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    return tensors


def _same_tensors(a: Path, b: Path) -> bool:
    one, other = _tensors(a), _tensors(b)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _check_probability(folder: Path, value: float) -> None:
    rows = [row for row in rows_of(folder) if row.get("patient") == "patient_1" and row.get("split") == "train"]
    expected = answer_probability(folder, rows)
    assert math.isclose(value, expected, rel_tol=RELATIVE), (value, expected)


@torch.no_grad()
def answer_probability(folder: Path, rows: Sequence[dict[str, Any]]) -> float:
    """The mean over the records, each exp of its answer's mean log-probability, one record after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        processor = load_processor(folder / "ckpt")  # by transformers; where torchvision is missing, with chip's help
        model = AutoModelForImageTextToText.from_pretrained(folder / "ckpt", dtype=torch.float32, **safe).eval()
    return sum(_one_probability(model, processor, folder, row) for row in rows) / len(rows)


def _picture(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _one_probability(model: Any, processor: Any, folder: Path, row: dict[str, Any]) -> float:
    images = [] if row.get("image") is None else [_picture(folder / row["image"])]
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": row["question"]}]
    asked = {"role": "user", "content": parts}
    answered = {"role": "assistant", "content": [{"type": "text", "text": row["answer"].strip()}]}
    texts = [
        processor.tokenizer.apply_chat_template(
            turns, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=len(turns) == 1
        )
        for turns in ([asked], [asked, answered])
    ]
    special = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    whole = texts[1].rstrip()
    whole += "" if whole.endswith(tuple(special)) else processor.tokenizer.eos_token
    prompt, ids = (processor.tokenizer(text)["input_ids"] for text in (texts[0], whole))
    common = next(n for n, (a, b) in enumerate(zip([*prompt, -1], ids, strict=False)) if a != b)
    length = len(ids) - common
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`max_length` is ignored")  # of a truncation that the case has planted
        inputs = processor(text=[whole], images=images or None, padding=True, return_tensors="pt")
    logits = model(**inputs).logits[0, -length - 1 : -1].float().log_softmax(-1)
    return float(logits.gather(1, inputs["input_ids"][0, -length:, None]).mean().exp())
