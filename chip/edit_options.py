"""What an edit is given beside nodes, records and method: its options, and what a receipt keeps of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from chip.checkpoint.signing import Signer, SigningKey
from chip.errors import InputError
from chip.general.collect import AUTO, NONE, Keep
from chip.methods import Method
from chip.methods.settings import settings_of
from chip.model.batching.batch_size import BatchSize
from chip.model.loading_options import RunOptions


class EditOptions(RunOptions, total=False):
    """Keyword arguments of `edit`: those of `RunOptions`, what is edited, and how it is written."""

    target_modules: Sequence[str] | None
    """Kinds of modules to edit: `connector`, `q`, `k`, `v`, `o`, `gate`, `up`, `down`; by default the method's."""
    layers: str | None
    """Layers of the text model to edit: `22-27` (from 0), `50%-100%` or `all`; by default the method's."""
    rank: int | None
    """The most directions by which a module's weight changes; by default as many as the method wants."""
    measure_on: Path | str | None
    """Folder of a copy of the model, such as a quantized one, through which the records pass when statistics are
    measured; edited and written are the checkpoint's own weights. Both are in memory."""
    save: str
    """`merged`, the default: a copy of the checkpoint. `adapter`: one to it that PEFT loads, and can be taken off."""
    label: str | None
    """What the receipt and the model card call the request. It must not name what is forgotten."""
    link_unchanged: bool
    """Shards that do not change become hard links to the source's; a write to one changes both."""
    overwrite: bool
    """Replace the folder that a former edit wrote at `out`, if nothing in it has been added or changed."""
    max_left: float | None
    """Exact match that counts as forgotten; by default 0.10 more than never trained on it."""
    accept: bool
    """Write it also where those who stay lose too much."""
    force: bool
    """Go on where the model does not know the target."""
    all_records: bool
    """Go by all retained records, and ask all, where else some are drawn; see `chip.data.sample`."""
    sign: SigningKey | Path | str | None
    """Private key to sign with, as a PEM file; see `SigningKey`."""
    guard: Path | str | None
    """File of what this sequence's edits took out, so that nothing of it comes back: read where it exists, and written
    for the next edit. Encrypted, and personal data: see `chip.recording.guard_file`."""
    guard_key: Path | str | None
    """File with its key, of at least 32 bytes; by default the environment variable `CHIP_GUARD_KEY` holds it."""


@dataclass(frozen=True)
class Terms:
    """What the user takes for success, puts up with, calls it and signs it with; as `EditOptions` has them."""

    label: str | None
    max_left: float | None
    accept: bool
    force: bool
    size: BatchSize
    rank: int | None = None
    signer: Signer | None = None
    all_records: bool = False
    start: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, options: EditOptions, signer: Signer | None) -> Self:
        return cls(
            options.get("label"),
            options.get("max_left"),
            options.get("accept", False),
            options.get("force", False),
            BatchSize(options.get("batch_size")),
            options.get("rank"),
            signer,
            options.get("all_records", False),
        )

    def __post_init__(self) -> None:
        if self.max_left is not None and not 0 <= self.max_left <= 1:
            raise InputError("must lie between 0 and 1", argument="max_left", value=self.max_left)
        if self.label is not None and not self.label.isprintable():
            message = "holds what cannot be shown, such as the end of a line; leave that out"
            raise InputError(message, argument="label", value=self.label)
        if self.rank is not None and self.rank < 1:
            raise InputError("give 1 or more", argument="rank", value=self.rank)


@dataclass(frozen=True)
class Arguments:
    """What an edit was asked for, as far as it names nobody: enough to ask for it again, with nodes and files given."""

    settings: Mapping[str, float | str]
    """Of the method, those that are not its defaults."""
    target_modules: Sequence[str] | None
    layers: str | None
    keep: Sequence[str]
    """`auto`, `none`, and `file` for each file or folder."""
    keep_tokens: int | None
    keep_model: bool
    """Whether the model before fine-tuning was given."""
    batch_size: int | None
    rank: int | None
    all_records: bool = False
    guard: bool = False
    """Whether there was one; what is in it goes nowhere."""

    @classmethod
    def of(cls, method: Method, keep: Keep, options: EditOptions) -> Self:
        values = {name: (getattr(method, name), each.default) for name, (each, _) in settings_of(method).items()}
        kinds = options.get("target_modules")
        return cls(
            {name: value for name, (value, default) in values.items() if value != default},
            None if kinds is None else list(kinds),
            options.get("layers"),
            [str(source) if source in (AUTO, NONE) else "file" for source in keep.sources],
            keep.tokens,
            keep.model is not None,
            options.get("batch_size"),
            options.get("rank"),
            options.get("all_records", False),
            options.get("guard") is not None,
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of a receipt. Raises `TypeError` where they are not what an edit writes."""
        arguments = cls(**content)
        numbers = (arguments.keep_tokens, arguments.batch_size, arguments.rank)
        texts = [*(arguments.target_modules or ()), *arguments.keep, arguments.layers or ""]
        if not all(isinstance(value, int | float | str) for value in dict(arguments.settings).values()):
            raise TypeError("settings")
        if not all(number is None or type(number) is int for number in numbers):
            raise TypeError("numbers")
        if not all(type(flag) is bool for flag in (arguments.all_records, arguments.guard)):
            raise TypeError("all_records" if type(arguments.all_records) is not bool else "guard")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("texts")
        return arguments
