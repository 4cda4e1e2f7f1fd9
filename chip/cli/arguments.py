"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chip.checkpoint.signing import SigningKey
from chip.errors import InputError

if TYPE_CHECKING:
    from chip.data.readers import RecordSource
    from chip.ledger import Ledger

CheckpointFolder = Annotated[
    Path, typer.Argument(help="Folder in the Hugging Face format, safetensors; or of a LoRA adapter.", metavar="CKPT")
]
AdapterFolder = Annotated[
    Path | None, typer.Option(help="A LoRA adapter to merge into CKPT first; needs peft.", metavar="FOLDER")
]
BaseFolder = Annotated[
    Path | None,
    typer.Option(help="Where CKPT is an adapter alone: its base, by default the one it names.", metavar="FOLDER"),
]
Html = Annotated[
    Path | None, typer.Option("--html", help="Write it as a web page too: one file, nothing else.", metavar="FILE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; by default the best there is.")]
RecordsFile = Annotated[
    Path | None, typer.Option(help="Records file or folder; by default records.jsonl or .parquet beside CKPT.")
]
OwnerMap = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="Where a row says whose it is: a column (patient=metadata.subject_id), the image's path "
        "(patient=image:/p(\\d+)/), a name (institution='General'), a table (patient=@t.csv:image_id:patient), "
        "or dicom:PatientID; repeat. It is kept beside the records.",
        metavar="LEVEL=SOURCE",
    ),
]
ImageWindow = Annotated[
    str | None,
    typer.Option("--window", help="Values that become gray, in images of more than 8 bits.", metavar="CENTER,WIDTH"),
]
ImageFolder = Annotated[
    Path | None,
    typer.Option("--images", help="Folder that paths of images start from; by default the records'.", metavar="DIR"),
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

LedgerFile = Annotated[
    Path | None,
    typer.Option("--ledger", help="Ledger that gets an entry of this run.", metavar="FILE"),
]
LedgerKeyFile = Annotated[
    Path | None, typer.Option(help="File with the ledger's key; by default CHIP_LEDGER_KEY holds it.", metavar="FILE")
]


SignKey = Annotated[
    str | None,
    typer.Option(
        "--sign",
        help="Private key that signs what is written: a PEM file, or a PKCS #11 URI; needs the extra sign.",
        metavar="KEY",
    ),
]
SignCertificates = Annotated[
    list[Path] | None,
    typer.Option(
        "--sign-certificate", help="The key's certificate; repeat for those between it and a root.", metavar="FILE"
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


def signing_key(key: str | None, certificates: Sequence[Path] | None) -> SigningKey | None:
    """What signs; None where nothing is to."""
    if key is None and certificates:
        raise InputError("is of a key; give it with --sign", argument="sign_certificate", value=certificates[0])
    return None if key is None else SigningKey(key, tuple(certificates or ()))


def chosen_targets(
    forget: list[str] | None, ledger: Ledger | None, all_open: bool, find: Callable[[Ledger], list[str]]
) -> list[str]:
    """The nodes that were named, or those that `find` gives for `--open`.

    Raises:
        InputError: neither or both were asked for, or there is no ledger; and as `find` does.
    """
    if all_open == bool(forget):
        raise InputError("Missing option '--forget': name a node, or take --ledger FILE --open; not both")
    if not all_open:
        return list(forget or ())
    if ledger is None:
        raise InputError("goes with --ledger", argument="open")
    return find(ledger)


def open_ledger(file: Path | None, key: Path | None, by: str | None = None) -> Ledger | None:
    """The ledger in a file; None where none is given. Raises `InputError` for a key alone, or one that is none."""
    from chip.ledger import Ledger, LedgerKey

    if file is None:
        if key is not None:
            raise InputError("goes with --ledger", argument="ledger_key", value=key)
        return None
    return Ledger(file, LedgerKey.read(key), by=by)


def record_source(
    records: Path | None, owners: list[str] | None, window: str | None, images: Path | None
) -> RecordSource:
    """How the options say that records are to be read.

    Raises:
        InputError: a level is mapped twice, or without saying where to.
    """
    from chip.data.readers import RecordSource

    mapped: dict[str, str] = {}
    for text in owners or ():
        level, equals, source = text.partition("=")
        if not equals or level in mapped:
            message = "is mapped twice; give it once" if equals else "says not where; give LEVEL=SOURCE"
            raise InputError(message, argument="map", value=text)
        mapped[level] = source
    return RecordSource(records, mapped, window, None if images is None else images.absolute())


def print_json(value: dict[str, Any]) -> None:
    """One JSON object, and nothing else."""
    print(json.dumps(value, indent=2))
