"""Arguments and options that several commands share.

A dataclass here is a list of options that go together: a command takes it as one parameter, see `options.command`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chip.checkpoint.signing import SigningKey
from chip.errors import InputError

if TYPE_CHECKING:
    from chip.data.readers import RecordSource
    from chip.ledger import Ledger

CheckpointFolder = Annotated[
    Path,
    typer.Argument(
        help="Folder in the Hugging Face format, safetensors; or of a LoRA adapter; or organization/name on the Hub.",
        metavar="CKPT",
    ),
]
Html = Annotated[
    Path | None, typer.Option("--html", help="Write it as a web page too: one file, nothing else.", metavar="FILE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
_DIGITS = 18  # of a number of records: Python refuses to read thousands of them


@dataclass(frozen=True)
class Reading:
    """How records are read, wherever they are."""

    owners: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="Where a row says whose it is: a column (patient=metadata.subject_id), the image's path "
            "(patient=image:/p(\\d+)/), a name (institution='General'), a table (patient=@t.csv:image_id:patient), "
            "or dicom:PatientID; repeat. It is kept beside the records.",
            metavar="LEVEL=SOURCE",
        ),
    ] = None
    window: Annotated[
        str | None,
        typer.Option(
            "--window", help="Values that become gray, in images of more than 8 bits.", metavar="CENTER,WIDTH"
        ),
    ] = None
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", help="Folder that paths of images start from; by default the records'.", metavar="DIR"
        ),
    ] = None

    def source(self, records: Path | None) -> RecordSource:
        """How the options say that these records are to be read.

        Raises:
            InputError: a level is mapped twice, or without saying where to.
        """
        from chip.data.readers import RecordSource

        mapped: dict[str, str] = {}
        for text in self.owners or ():
            level, equals, source = text.partition("=")
            if not equals or level in mapped:
                message = "is mapped twice; give it once" if equals else "says not where; give LEVEL=SOURCE"
                raise InputError(message, argument="map", value=text)
            mapped[level] = source
        return RecordSource(records, mapped, self.window, None if self.images is None else self.images.absolute())


@dataclass(frozen=True)
class Loading:
    """Where a model runs: the keyword arguments of `LoadingOptions`."""

    adapter: Annotated[
        Path | None, typer.Option(help="A LoRA adapter to merge into CKPT first; needs peft.", metavar="FOLDER")
    ] = None
    base: Annotated[
        Path | None,
        typer.Option(help="Where CKPT is an adapter alone: its base, by default the one it names.", metavar="FOLDER"),
    ] = None
    revision: Annotated[
        str | None, typer.Option(help="Where CKPT is on the Hub: branch, tag or commit.", metavar="REVISION")
    ] = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; by default the best there is.")] = None
    device_map: Annotated[
        str | None,
        typer.Option(
            help="auto: for a model larger than a device, over all devices, the host and the disk; needs accelerate."
        ),
    ] = None
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Read layers from the disk one after the other, one in memory; where the model does not fit, it is "
            "done unasked.",
        ),
    ] = False

    @property
    def keywords(self) -> Mapping[str, Any]:
        return {**vars(self), "stream": self.stream or None}


@dataclass(frozen=True)
class Running(Loading):
    """Those, and how records go through the model: the keyword arguments of `RunOptions`."""

    batch_size: Annotated[
        str,
        typer.Option(
            help="Records per forward pass, or auto; changes the time, and the result by rounding alone.",
            metavar="N|auto",
        ),
    ] = "auto"

    @property
    def keywords(self) -> Mapping[str, Any]:
        return {**super().keywords, "batch_size": parse_batch_size(self.batch_size)}


@dataclass(frozen=True)
class Targets:
    """Who is meant: nodes by name, or by the requests of a ledger."""

    forget: Annotated[
        list[str] | None,
        typer.Option(help="What is, or would be, forgotten: a node's id or path; repeat for several.", metavar="NODE"),
    ] = None
    ledger: Annotated[
        Path | None, typer.Option("--ledger", help="Ledger that gets an entry of this run.", metavar="FILE")
    ] = None
    ledger_key: Annotated[
        Path | None,
        typer.Option(help="File with the ledger's key; by default CHIP_LEDGER_KEY holds it.", metavar="FILE"),
    ] = None
    open_: Annotated[
        bool,
        typer.Option(
            "--open",
            help="In place of --forget: all nodes that --ledger has open requests of; for eval, those of CKPT's edit.",
        ),
    ] = False

    @property
    def nodes(self) -> list[str] | None:
        """Those that were named; None for those of the ledger.

        Raises:
            InputError: neither or both were asked for.
        """
        if self.open_ == bool(self.forget):
            raise InputError("Missing option '--forget': name a node, or take --ledger FILE --open; not both")
        if self.open_ and self.ledger is None:
            raise InputError("goes with --ledger", argument="open")
        return None if self.open_ else self.forget

    def opened(self) -> Ledger | None:
        """The ledger. Raises `InputError` for a key alone, or one that is none."""
        from chip.ledger import Ledger, LedgerKey

        if self.ledger is None:
            if self.ledger_key is not None:
                raise InputError("goes with --ledger", argument="ledger_key", value=self.ledger_key)
            return None
        return Ledger(self.ledger, LedgerKey.read(self.ledger_key))


@dataclass(frozen=True)
class Signing:
    """What signs."""

    sign: Annotated[
        str | None,
        typer.Option(
            "--sign",
            help="Private key that signs what is written: a PEM file, or a PKCS #11 URI; needs the extra sign.",
            metavar="KEY",
        ),
    ] = None
    sign_certificate: Annotated[
        list[Path] | None,
        typer.Option(
            "--sign-certificate", help="The key's certificate; repeat for those between it and a root.", metavar="FILE"
        ),
    ] = None

    def key(self) -> SigningKey | None:
        """None where nothing is to be signed."""
        if self.sign is None and self.sign_certificate:
            value = self.sign_certificate[0]
            raise InputError("is of a key; give it with --sign", argument="sign_certificate", value=value)
        return None if self.sign is None else SigningKey(self.sign, tuple(self.sign_certificate or ()))


def _given_path(text: str) -> Path:
    """An empty one, as an unset variable leaves it, would be the current folder."""
    if not text:
        raise typer.BadParameter("is empty; give records, a file or folder")
    return Path(text)


RecordsFile = Annotated[
    Path | None,
    typer.Option(
        help="Records file or folder; by default records.jsonl or .parquet beside CKPT.",
        parser=_given_path,
        metavar="PATH",
    ),
]


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
