"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from chip.errors import InputError

CheckpointFolder = Annotated[
    Path, typer.Argument(help="Folder in the Hugging Face format, safetensors.", metavar="CKPT")
]
Html = Annotated[
    Path | None, typer.Option("--html", help="Write it as a web page too: one file, nothing else.", metavar="FILE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; by default the best there is.")]
RecordsFile = Annotated[
    Path | None, typer.Option(help="Records file; by default records.jsonl or .parquet beside CKPT.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="auto: for a model larger than a device, over all devices, the host and the disk; needs accelerate."
    ),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Read layers from the disk one after the other, one in memory; where the model does not fit, it is done "
        "unasked.",
    ),
]
BatchSizes = Annotated[
    str,
    typer.Option(
        help="Records per forward pass, or auto; changes the time, and the result by rounding alone.", metavar="N|auto"
    ),
]


_DIGITS = 18  # of a number of records: Python refuses to read thousands of them


def parse_batch_size(text: str) -> int | None:
    """Records; None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or len(text) > _DIGITS or int(text) == 0:
        raise InputError("give a number of records, or auto", argument="batch_size", value=text)
    return int(text)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object, and nothing else."""
    print(json.dumps(value, indent=2))
