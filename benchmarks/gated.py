"""What gates take out of a model, and what passes beside them.

    python -m benchmarks.gated [--model crowded] [--methods gated,shielded+gated] [--forget patient_3] [--set views=0]

Models: `demo`, the one of `chip demo`; `crowded`, a Qwen2.5-VL whose connector has no room for a linear edit
(`benchmarks.crowded`, trained once and cached); or a folder that holds `ckpt` and `records.jsonl`.

Figures are exact match on paraphrased questions, of the target's also about its pictures in forms of which most are no
form that gates are made for, and with weights rounded to 8 and 4 bits.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image, ImageEnhance

from benchmarks import crowded
from benchmarks.editing import edited
from chip.checkpoint.layout import Checkpoint
from chip.data.hierarchy import Hierarchy
from chip.data.readers import read_records
from chip.data.record import Record, open_image
from chip.data.request import ForgetRequest
from chip.demo import write_demo
from chip.errors import ChipError, ChipWarning
from chip.evaluation.attacks.quantization import quantized
from chip.evaluation.quantizers import round_to_nearest
from chip.methods import make_method
from chip.methods.patch import Patch
from chip.model.loading import VLM, load_vlm
from chip.model.scoring import score_records

CACHE = Path.home() / ".cache" / "chip"
NOISE = 6.0
"""Standard deviation, of 255."""


def _cropped(image: Image.Image) -> Image.Image:
    """Most of it, from no corner and not from the middle."""
    width, height = (round(0.88 * side) for side in image.size)
    left, top = round(0.3 * (image.width - width)), round(0.7 * (image.height - height))
    return image.crop((left, top, left + width, top + height)).resize(image.size, Image.Resampling.BICUBIC)


def _noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image) + np.random.default_rng(0).normal(0, NOISE, np.asarray(image).shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


FORMS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: image,
    "cropped": _cropped,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "noisy": _noisy,
}
"""Name -> what is done to the target's pictures before it is asked about."""


def _in_form(record: Record, form: str) -> Record:
    image = open_image(record)
    if image is None:
        return record
    file = io.BytesIO()
    FORMS[form](image).save(file, "JPEG" if form == "jpeg" else "PNG", quality=60)
    return replace(record, image=file.getvalue())


@dataclass(frozen=True)
class GatedRow:
    """One edit, or none; exact match by group, by form of the target's pictures, and by bits."""

    model: str
    method: str
    settings: Mapping[str, float]
    target: str
    seconds: float | None
    refused: str | None
    said: Sequence[str]
    """What the edit warned of."""
    largest_change: float | None
    """‖W′ − W‖ / ‖W‖ of a matrix, the largest."""
    groups: Mapping[str, float] | None
    probability: float | None
    """Mean answer probability of the target."""
    forms: Mapping[str, float] | None
    bits: Mapping[str, Mapping[str, float]] | None


class Questions:
    """A request's questions, as they are judged."""

    def __init__(self, vlm: VLM, request: ForgetRequest) -> None:
        records = request.hierarchy.records
        self._vlm = vlm
        self.groups = {
            group: [records[i] for i in indices if records[i].held_out]
            for group, indices in request.partition.groups.items()
        }

    def exact(self, records: Sequence[Record]) -> float:
        return float(score_records(self._vlm, records).exact_match.mean()) if records else float("nan")

    def judge(self) -> dict[str, Any]:
        probability = float(score_records(self._vlm, self.groups["target"]).answer_probability.mean())
        bits = {}
        for name, (number, group) in {"8": (8, None), "4": (4, 32)}.items():
            with quantized(self._vlm, partial(round_to_nearest, bits=number, group=group)):
                bits[name] = self.of_groups()
        shown = [record for record in self.groups["target"] if record.image is not None]
        forms = {form: self.exact([_in_form(record, form) for record in shown]) for form in FORMS}
        return {"groups": self.of_groups(), "probability": probability, "forms": forms, "bits": bits}

    def of_groups(self) -> dict[str, float]:
        return {group: self.exact(records) for group, records in self.groups.items()}


def _matrices(patch: Patch) -> float:
    return max((patch.relative_change[name] for name, value in patch.tensors.items() if value.dim() > 1), default=0.0)


class Bench:
    """One model and its records."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        checkpoint, records = _written(name, folder)
        self.checkpoint, self.vlm = Checkpoint.open(checkpoint), load_vlm(checkpoint, "cpu")
        self.hierarchy = Hierarchy(read_records(records))

    def row(self, method: str, settings: Mapping[str, float], target: str) -> GatedRow:
        """Edit, and judge; afterwards the model is as it was."""
        request = ForgetRequest.of(self.hierarchy, [target])
        questions = Questions(self.vlm, request)
        empty = GatedRow(self.name, method, settings, target, None, None, [], None, None, None, None, None)
        if method == "none":
            return replace(empty, **questions.judge())
        made, start = make_method(method, settings), time.monotonic()
        with warnings.catch_warnings(record=True) as caught, ExitStack() as editing:
            warnings.simplefilter("always", ChipWarning)
            try:
                patch = editing.enter_context(edited(self.vlm, self.checkpoint, made, request))
            except ChipError as error:
                return replace(empty, refused=str(error))
            seconds, said = time.monotonic() - start, [str(warning.message) for warning in caught]
            return replace(empty, seconds=seconds, said=said, largest_change=_matrices(patch), **questions.judge())

    def again(self, method: str, settings: Mapping[str, float], first: str, second: str) -> dict[str, Any]:
        """Forget `second` in the model that has forgotten `first`, with no record of that; what is left of both."""
        made = make_method(method, settings)
        before = ForgetRequest.of(self.hierarchy, [first])
        remaining = [self.hierarchy.records[i] for i in sorted(before.partition.retained)]
        request = ForgetRequest.of(Hierarchy(remaining), [second])
        with ExitStack() as editing:
            editing.enter_context(edited(self.vlm, self.checkpoint, made, before))
            once = Questions(self.vlm, before).of_groups()["target"]
            editing.enter_context(edited(self.vlm, self.checkpoint, made, request))
            left = Questions(self.vlm, before).of_groups()["target"]
            return {"first": once, "first behind the second": left, **Questions(self.vlm, request).of_groups()}


def _written(name: str, folder: Path) -> tuple[Path, Path]:
    """Checkpoint and records file of a model."""
    if name == "crowded":
        return crowded.write_world(folder / "crowded" / "2", seed=2)
    if name != "demo":
        return Path(name) / "ckpt", Path(name) / "records.jsonl"
    place = Path(tempfile.mkdtemp()) / "demo"
    write_demo(place)
    return place / "ckpt", place / "records.jsonl"


def main(
    model: Annotated[str, typer.Option(help="demo, crowded, or a folder.")] = "crowded",
    methods: Annotated[str, typer.Option(help="none, and methods as --method takes them.")] = "none,gated",
    forget: Annotated[str, typer.Option(help="Nodes, forgotten one at a time.")] = "patient_3",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Settings, `max_change=4,closed=2`; repeat.")] = None,
    again: Annotated[str, typer.Option(help="A node to forget behind each of the others.")] = "",
    cache: Annotated[Path, typer.Option(help="Where models lie.")] = CACHE,
    out: Annotated[Path | None, typer.Option(help="File to add rows to, a line of JSON each.")] = None,
) -> None:
    """Print a line of JSON for each edit."""
    torch.set_num_threads(1)
    bench = Bench(model, cache)
    for target in forget.split(","):
        for method in methods.split(","):
            for text in set_ or [""]:
                settings = {name: float(value) for name, value in (item.split("=") for item in text.split(",") if item)}
                row: dict[str, Any] = asdict(bench.row(method, settings, target))
                if again:
                    row["again"] = bench.again(method, settings, target, again)
                line = json.dumps(row, ensure_ascii=False)
                print(line, flush=True)
                if out is not None:
                    with out.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")


if __name__ == "__main__":
    typer.run(main)
