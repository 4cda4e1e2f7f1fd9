"""What an edit leaves behind to be checked by: what was done, and hashes of all that was written.

Nothing of the forgotten is in it: no id, no text, no direction, and no path, as a folder may be named after somebody.
The file is a statement of in-toto about the folder's files (`chip.checkpoint.statement`); the receipt is its predicate.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, Self, get_type_hints

from chip._version import __version__
from chip.checkpoint.edit import Edit
from chip.checkpoint.field_types import check_types
from chip.checkpoint.folder import check_not_half_replaced
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.paths import open_inside
from chip.checkpoint.read_back import ReadBack, WrittenFile
from chip.checkpoint.sequence import Drift, EditSequence, next_drift
from chip.checkpoint.statement import EDIT, LIMITS, statement_text, to_json
from chip.checkpoint.weights import combined_digest, weight_files
from chip.errors import InputError

RECEIPT = "chip_receipt.json"
LONGEST = 100_000_000  # bytes; one of a model with a thousand changed tensors takes some hundred thousand
_FORMAT = 2  # version of the file's format; one with other keys gets another number
_FIRST = 1  # as chip 0.1.0 wrote it: the receipt alone, without the fields from `version` on
_OPTIONAL = ("adapter", "base", "general", "hub", "quantized", "measured_on")


@dataclass(frozen=True)
class ChangedTensor:
    """A changed tensor as the receipt records it. Hashes are SHA-256 of its bytes, in hexadecimal."""

    shard: str
    dtype: str
    shape: list[int]
    before: str
    after: str
    relative_change: float
    remaining: float | None


@dataclass(frozen=True)
class Receipt:
    """The content of `chip_receipt.json`, in its order."""

    receipt: int
    """Version of the file's format."""
    chip: str
    """Version of chip."""
    created: str
    """UTC, ISO 8601."""
    label: str | None
    method: str
    settings: dict[str, Any]
    seed: int | None
    files_read_back: int
    tensors_read_back: int
    untouched_bytes: int
    """Of the copied files, outside of the changed tensors: the source's by their hash."""
    tensors: dict[str, ChangedTensor]
    files: dict[str, WrittenFile]
    """All files of the folder but the receipt itself and its signature."""
    previous: dict[str, Any] | None
    """The receipt that the source had."""
    version: int | None = None
    """Of the method. This and what follows is None in a receipt of chip 0.1.0."""
    arguments: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    """Versions of python, torch and transformers; device and dtype."""
    figures: dict[str, Any] | None = None
    attacks: list[str] | None = None
    """Those that were run: none by an edit. `chip eval --statement` writes what they found."""
    limits: list[str] | None = None
    """What the figures do not show."""
    sequence: EditSequence | None = None
    adapter: dict[str, str] | None = None
    """File -> SHA-256 of what was merged into the source's weights before the edit; left out where nothing was."""
    base: dict[str, str] | None = None
    """File -> SHA-256 of the weights that the folder is an adapter to; left out of the receipt of a checkpoint."""
    hub: dict[str, str] | None = None
    """`Checkpoint.hub` of the source; left out where nothing of it is of the Hub."""
    general: str | None = None
    """HMAC-SHA256 of the digest of the general data that was protected, by `source_digest`; left out without any. It
    shows whether the same was protected again, and nothing of what that was."""
    quantized: dict[str, str] | None = None
    """File -> SHA-256 of the source, where it was quantized: `files` and `tensors` are of it dequantized to bf16."""
    measured_on: dict[str, str] | None = None
    """File -> SHA-256 of the copy of the source that the statistics were measured on, where it was one."""

    @classmethod
    def of(cls, source: Checkpoint, edit: Edit, written: ReadBack, base: Mapping[str, str] | None = None) -> Self:
        """The receipt of a folder that has just been written and read back; `base` as in `Receipt`."""
        from chip.checkpoint.measure import frobenius_norm  # brings torch, which reading a receipt does without

        entries = source.entries
        tensors = {
            name: ChangedTensor(
                entries[name].shard,
                entries[name].dtype,
                list(entries[name].shape),
                tensor.before,
                tensor.after,
                edit.relative_change[name],
                edit.remaining.get(name),
            )
            for name, tensor in sorted(written.tensors.items())
        }
        receipt = cls(
            receipt=_FORMAT,
            chip=__version__,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            label=edit.label,
            method=edit.method,
            settings=dict(edit.settings),
            seed=edit.seed,
            files_read_back=len(written.files),
            tensors_read_back=len(tensors),
            untouched_bytes=written.untouched_bytes,
            tensors=tensors,
            files=dict(sorted(written.files.items())),
            previous=stored_receipt(source.folder),
            version=edit.version,
            arguments=dict(edit.arguments),
            environment=dict(edit.environment),
            figures=dict(edit.figures),
            attacks=[],
            limits=list(LIMITS),
            adapter=None if source.adapter is None else source.adapter.digests(),
            quantized=None if source.quantized is None else weight_files(source),
            measured_on=None if edit.measured_on is None else dict(edit.measured_on),
            base=None if base is None else dict(base),
            hub=source.hub or None,
        )
        norms = {name: frobenius_norm(source.stored(name)) for name in tensors}
        key, general = bytes.fromhex(receipt.source_digest), None
        if edit.general_digest is not None:
            general = hmac.new(key, edit.general_digest, hashlib.sha256).hexdigest()
        return replace(receipt, sequence=receipt.expected_sequence(norms), general=general)

    @property
    def source_digest(self) -> str:
        """`weights_digest` of the checkpoint that was edited; where an adapter was merged first, of its base; where the
        weights were quantized, of these."""
        if self.quantized is not None:
            return combined_digest(self.quantized)
        copied = {name: file.source_sha256 for name, file in self.files.items() if file.source_sha256}
        return combined_digest(copied if self.base is None else self.base)

    @property
    def result_digest(self) -> str:
        """`weights_digest` of what was written."""
        return combined_digest({name: file.sha256 for name, file in self.files.items()})

    @property
    def without_source(self) -> str | None:
        """A file of weights of which there is no hash before the edit."""
        unknown = (name for name, file in self.files.items() if file.source_sha256 is None and self.base is None)
        return next((name for name in unknown if name.endswith(".safetensors")), None)

    @property
    def earlier(self) -> Self | None:
        """The receipt of the edit before; None where there was none, or the weights are no longer those it was of."""
        previous = None if self.previous is None else self.from_json(self.previous)
        return previous if previous is not None and previous.result_digest == self.source_digest else None

    @property
    def chain(self) -> list[str]:
        """`EditSequence.chain`, from what the receipts say of files."""
        return _chain(self.earlier, self.source_digest)

    @property
    def sequence_follows(self) -> bool:
        """Whether `sequence` is what the rest of the receipt says; of the first format, it is not there."""
        if self.sequence is None:
            return self.receipt == _FIRST
        norms = self.sequence.norms
        return norms.keys() == self.tensors.keys() and self.sequence == self.expected_sequence(norms)

    def expected_sequence(self, norms: dict[str, float]) -> EditSequence:
        """What `sequence` has to be, by the rest of the receipt.

        Args:
            norms: ‖W‖ (Frobenius) of each changed tensor before the edit.
        """
        changes = {name: tensor.relative_change for name, tensor in self.tensors.items()}
        return sequence_behind(self.earlier, self.source_digest, changes if self.base is None else None, norms)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Raises `TypeError` or `LookupError` where a field is missing, unknown, or of another type."""
        tensors = {name: ChangedTensor(**tensor) for name, tensor in content["tensors"].items()}
        files = {name: WrittenFile(**file) for name, file in content["files"].items()}
        sequence = None if content.get("sequence") is None else EditSequence.from_json(content["sequence"])
        receipt = cls(**{**content, "tensors": tensors, "files": files, "sequence": sequence})
        for part in (receipt, *tensors.values(), *files.values()):
            check_types(part)
        return receipt

    def to_json(self) -> dict[str, Any]:
        """As stored, and as the next receipt keeps it."""
        content = asdict(self)
        left_out = {name for name in _OPTIONAL if content[name] is None}
        names = _FIRST_FIELDS if self.receipt == _FIRST else content
        return {name: content[name] for name in names if name not in left_out}


def _chain(earlier: Receipt | None, source_digest: str) -> list[str]:
    return [*([] if earlier is None else earlier.chain), source_digest]


def sequence_behind(
    earlier: Receipt | None, source_digest: str, changes: Mapping[str, float] | None, norms: dict[str, float]
) -> EditSequence:
    """The place in its sequence of an edit of these weights.

    Args:
        earlier: of the edit that wrote them; None where none did.
        changes: ‖W′ − W‖ / ‖W‖ (Frobenius) of each changed tensor; None where they are not to be had.
        norms: ‖W‖ of the same tensors.
    """
    drift: Mapping[str, Drift] | None = {}
    if earlier is not None:
        drift = None if earlier.sequence is None else earlier.sequence.drift
    bounded = None if drift is None or changes is None else next_drift(drift, changes, norms)
    chain = _chain(earlier, source_digest)
    return EditSequence(len(chain), chain, norms, bounded)


_FIRST_FIELDS = tuple(takewhile(lambda name: name != "version", get_type_hints(Receipt)))


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Write `receipt` into the folder, over one that is there."""
    (folder / RECEIPT).write_bytes(_text(receipt))


def has_receipt(folder: Path) -> bool:
    """Whether there is one, whatever is in it."""
    return (folder / RECEIPT).exists()


def stored_receipt(folder: Path) -> dict[str, Any] | None:
    """The receipt in a folder as the next one keeps it; None where there is none. Raises as `read_receipt` does."""
    return read_receipt(folder).to_json() if has_receipt(folder) else None


def read_receipt(place: Path) -> Receipt:
    """The receipt in a folder, or in a file that has been copied out of one.

    Raises:
        InputError: there is none, it cannot be read, or it is not byte for byte as chip writes it: damaged, or changed
            by hand.
    """
    file = place if place.is_file() else place / RECEIPT
    if not file.exists():
        check_not_half_replaced(place)
        raise InputError(f"{place}: no {RECEIPT} here; give a folder that `chip edit` has written")
    with open_inside(file.parent, file.name) as content:
        text = content.read(LONGEST)
    try:
        receipt = _parsed(text)
        whole = receipt.receipt in (_FIRST, _FORMAT) and _text(receipt) == text
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # not JSON, or of another format
        whole = False
    if not whole:
        raise InputError(f"{file}: damaged, or changed by hand; take the folder again from where it was made")
    return receipt


def _parsed(text: bytes) -> Receipt:
    """The receipt in a file's text, the receipts that it keeps read too. Raises as `Receipt.from_json` does."""
    content = predicate(json.loads(text))
    receipt = Receipt.from_json({name: content[name] for name in content if name != "digest"})
    kept = receipt.previous
    while kept is not None:
        kept = Receipt.from_json(kept).previous
    return receipt


def predicate(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The receipt in what its file holds: of the first format it is the whole."""
    inside: Mapping[str, Any] = content.get("predicate", content)
    return inside


def _text(receipt: Receipt) -> bytes:
    """As stored. The digest at the end finds what happens by accident, not what somebody has made to fit."""
    content = receipt.to_json()
    if receipt.receipt == _FIRST:
        return to_json({**content, "digest": hashlib.sha256(to_json(content)).hexdigest()}) + b"\n"
    return statement_text({name: file.sha256 for name, file in receipt.files.items()}, EDIT, content)
