"""What an edit does to a model that was really pretrained, on facts that it knew before any fine-tuning.

    python -m benchmarks.pretrained [--forget france] [--weights 4,24,384,auto] [--keep-tokens 0,3072] [--json FILE]

The model is SmolLM2-135M-Instruct in a LLaVA (`smollm2`). The records are facts about countries, in the words in which
the model itself states them: one country is forgotten, the others are its siblings. What no record holds is measured on
held-out text: some that the model wrote itself from its start token, as the text that is kept, and some that it did
not, Python's language reference (`pydoc_data`, in the standard library, PSF license).

Everything is read from the written checkpoint. The model, records and texts are made once, and cached.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import chip
from benchmarks.countries import COUNTRIES, known_records
from benchmarks.measuring import scratch_folder
from benchmarks.reporting import RESULTS, JsonFile, device_name, print_table, versions, write_rows
from benchmarks.smollm2 import START, write_checkpoint
from chip.checkpoint.folder import atomic_directory
from chip.data.record import Record
from chip.errors import ChipError
from chip.methods import Shielded
from chip.model.loading import VLM, load_vlm
from chip.report.edit_report import EditReport

CACHE = Path.home() / ".cache" / "chip" / "smollm2"
SEED = 0

LENGTH = 128  # tokens of a text
KEEP = (3072, 6144)  # 2 and 4 times the 1,536 inputs of the widest module that is edited
HELD_OUT = 3072
ROWS = 16  # texts at once
LETTERS = 0.93
"""Characters of a text that is prose that are letters or spaces, at least."""


def is_prose(text: str) -> bool:
    """Whether a sampled text is plain English, and names none of the countries: the edit would protect the target."""
    plain = sum(letter.isascii() and (letter.isalpha() or letter == " ") for letter in text)
    return plain >= LETTERS * len(text) and not any(country in text for country in COUNTRIES)


@torch.no_grad()
def sampled_texts(vlm: VLM) -> Iterator[str]:
    """What the model writes from its start token, at temperature 1; without end, the same at every call."""
    torch.manual_seed(SEED)
    tokenizer = vlm.processor.tokenizer
    start = torch.full((ROWS, 1), tokenizer.convert_tokens_to_ids(START))
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": LENGTH}
    while True:
        tokens = vlm.model.generate(
            input_ids=start, attention_mask=torch.ones_like(start), min_new_tokens=LENGTH, **options
        )
        yield from filter(is_prose, tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True))


def write_world(folder: Path) -> Path:
    """Checkpoint, records, text to keep and held-out text in `folder`, which is returned; only what is missing."""
    vlm_folder, world = write_checkpoint(folder / "ckpt"), folder / "world"
    if not world.exists():
        vlm = load_vlm(vlm_folder, "cpu")
        with atomic_directory(world, overwrite=False) as written:
            written.mkdir()
            records = [_row(record) for record in known_records(vlm)]
            _write_lines(written / "records.jsonl", records)
            texts = [{"text": text} for text in islice(sampled_texts(vlm), (KEEP[-1] + HELD_OUT) // LENGTH)]
            for tokens in KEEP:
                _write_lines(written / f"keep-{tokens}.jsonl", texts[: tokens // LENGTH])
            _write_lines(written / "held-out.jsonl", texts[KEEP[-1] // LENGTH :])
    return folder


def _row(record: Record) -> dict[str, str]:
    levels = dict(zip(("institution", "patient"), record.path, strict=True))
    return {**levels, "question": record.question, "answer": record.answer, "split": record.split}


def _write_lines(file: Path, rows: Iterable[Mapping[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def held_out_texts(world: Path, vlm: VLM) -> dict[str, Tensor]:
    """(texts, tokens) int64 of what was sampled and of what was not, each text behind the start token."""
    tokenizer = vlm.processor.tokenizer
    lines = (world / "held-out.jsonl").read_text(encoding="utf-8").splitlines()
    sampled = [tokenizer(json.loads(line)["text"])["input_ids"][: LENGTH - 8] for line in lines]
    reference = tokenizer("\n\n".join(topics[name] for name in sorted(topics)))["input_ids"]
    step = len(reference) // (HELD_OUT // LENGTH)
    pieces = [reference[place : place + LENGTH] for place in range(0, len(reference) - LENGTH, step)]
    start = tokenizer.convert_tokens_to_ids(START)
    shortest = min(map(len, sampled))
    return {
        "sampled": torch.tensor([[start, *text[:shortest]] for text in sampled]),
        "reference": torch.tensor([[start, *text] for text in pieces]),
    }


@torch.no_grad()
def language(original: VLM, edited: VLM, texts: Tensor) -> dict[str, float]:
    """Of texts (n, tokens): what the edited model loses in nats a token, and KL(original ‖ edited) a token."""
    more, divergence = 0.0, 0.0
    for start in range(0, len(texts), ROWS // 4):
        rows = texts[start : start + ROWS // 4]
        before, after = (vlm.model(input_ids=rows, use_cache=False).logits[:, :-1] for vlm in (original, edited))
        before, after = before.log_softmax(-1), after.log_softmax(-1)
        more += float((before - after).gather(2, rows[:, 1:, None]).sum())
        divergence += float((before.exp() * (before - after)).sum())
    return {"nats": more / texts[:, 1:].numel(), "kl": divergence / texts[:, 1:].numel()}


@dataclass(frozen=True)
class PretrainedRow:
    """One edit; None in figures: it was refused."""

    keep_tokens: int
    retain_weight: float | str
    """As given."""
    found: float | None
    """The retain weight that auto has found."""
    refused: str | None
    seconds: float | None
    largest_change: float | None
    """‖W′ − W‖ / ‖W‖ of a tensor, the largest."""
    groups: Mapping[str, Mapping[str, Any]] | None
    """As in the edit's report."""
    general: Mapping[str, Mapping[str, float]] | None
    """Kind of held-out text -> `nats` more a token, and `kl`."""


class Measurement:
    """The world, and the unedited model, which every edited one is compared with."""

    def __init__(self, folder: Path, forget: str) -> None:
        self._checkpoint, self._world = folder / "ckpt", folder / "world"
        self._original = load_vlm(self._checkpoint, "cpu")
        self._texts, self._forget = held_out_texts(self._world, self._original), forget

    def row(self, keep_tokens: int, weight: float | str, scratch: Path) -> PretrainedRow:
        """Edit, write, and read what was written."""
        keep = [self._world / f"keep-{keep_tokens}.jsonl"] if keep_tokens else []
        try:
            report = chip.edit(
                self._checkpoint,
                [self._forget],
                records=self._world / "records.jsonl",
                out=scratch / "edited",
                method=Shielded(retain_weight=weight),  # type: ignore[arg-type]
                device="cpu",
                overwrite=True,
                keep=keep,
            )
        except ChipError as error:
            return PretrainedRow(keep_tokens, weight, None, str(error), None, None, None, None)
        return self._read(keep_tokens, weight, report, scratch / "edited")

    def _read(self, keep_tokens: int, weight: float | str, report: EditReport, folder: Path) -> PretrainedRow:
        edited = load_vlm(folder, "cpu")
        return PretrainedRow(
            keep_tokens,
            weight,
            None if report.choice is None else report.choice.value,
            None,
            report.seconds,
            max(report.relative_change.values()),
            report.to_json()["groups"],
            {name: language(self._original, edited, texts) for name, texts in self._texts.items()},
        )


def print_rows(rows: Sequence[PretrainedRow]) -> None:
    """Exact match (answer probability) of trained / paraphrased questions; general text as sampled / reference."""
    columns = ("kept text", "weight", "target", "siblings", "nats a token", "KL", "change")
    done = [row for row in rows if row.groups is not None]
    unedited = [["–", "unedited", *_answers(done[0], "before"), *["–"] * 3]] if done else []
    print_table("Facts from before fine-tuning", columns, [*unedited, *map(_cells, rows)], {1})


def _cells(row: PretrainedRow) -> list[str]:
    found = "" if row.found is None else f": {row.found:g}"
    cells = [f"{row.keep_tokens:,}", f"{row.retain_weight}{found}"]
    if row.general is None:
        return [*cells, "refused", *["–"] * 4]
    nats, divergence = (
        " / ".join(f"{kind[measure]:.3f}" for kind in row.general.values()) for measure in ("nats", "kl")
    )
    return [*cells, *_answers(row, "after"), nats, divergence, f"{row.largest_change:.2f}"]


def _answers(row: PretrainedRow, when: str) -> list[str]:
    groups = row.groups or {}
    return [
        " / ".join(
            f"{split['exact_match'][when]:.2f} ({split['answer_probability'][when]:.2f})" for split in of_split.values()
        )
        for of_split in (groups[name] for name in ("target", "siblings"))
    ]


def main(
    forget: Annotated[str, typer.Option(help="A country, in lower case.")] = "france",
    weights: Annotated[str, typer.Option(help="Retain weights.")] = "4,24,384,auto",
    keep_tokens: Annotated[
        str, typer.Option(help=f"Tokens of text to keep: 0, {', '.join(map(str, KEEP))}.")
    ] = f"0,{','.join(map(str, KEEP))}",
    cache: Annotated[Path, typer.Option(help="Where the model, records and texts lie.")] = CACHE,
    json_file: JsonFile = RESULTS / "pretrained.json",
) -> None:
    """Make what is missing, then edit with each retain weight, without and with text to keep."""
    torch.manual_seed(SEED)
    measurement = Measurement(write_world(cache), forget)
    rows = []
    with scratch_folder() as scratch:
        for tokens in map(int, keep_tokens.split(",")):
            for weight in weights.split(","):
                value = weight if weight == "auto" else float(weight)
                rows.append(measurement.row(tokens, value, scratch))
                print_rows(rows[-1:])
    print_rows(rows)
    if json_file is not None:
        names = list(asdict(rows[0]))
        header = {"device": device_name("cpu"), "versions": versions(), "forget": forget}
        write_rows(json_file, names, (list(asdict(row).values()) for row in rows), **header)


if __name__ == "__main__":
    typer.run(main)
