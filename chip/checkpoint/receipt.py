"""What an edit leaves behind to be checked by: what was done, and hashes of all that was written.

Nothing of the forgotten is in it: no id, no text, no direction, and no path, as a folder may be named after somebody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from chip._version import __version__
from chip.checkpoint.folder import check_not_half_replaced
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.paths import open_inside
from chip.checkpoint.read_back import ReadBack, WrittenFile
from chip.errors import InputError

RECEIPT = "chip_receipt.json"
LONGEST = 100_000_000  # bytes; one of a model with a thousand changed tensors takes some hundred thousand
_FORMAT = 1  # version of the file's format; one with other keys gets another number
_OPTIONAL = ("adapter", "base")


@dataclass(frozen=True)
class Edit:
    """What was done. A method's settings are recorded under the names that they had in its version of chip."""

    method: str
    settings: Mapping[str, Any]
    seed: int | None
    """Of the random choices; None where the method makes none."""
    relative_change: Mapping[str, float]
    """Name on disk -> ‖W′ − W‖ / ‖W‖ (Frobenius), after rounding."""
    remaining: Mapping[str, float]
    """Name on disk -> ‖QᵀW′‖ / ‖QᵀW‖ as written, where the method takes the directions Q out of W."""
    label: str | None = None
    """What the user calls the request."""


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
    """All files of the folder but the receipt itself."""
    previous: dict[str, Any] | None
    """The receipt that the source had."""
    adapter: dict[str, str] | None = None
    """File -> SHA-256 of what was merged into the source's weights before the edit; left out where nothing was."""
    base: dict[str, str] | None = None
    """File -> SHA-256 of the weights that the folder is an adapter to; left out of the receipt of a checkpoint."""

    @classmethod
    def of(cls, source: Checkpoint, edit: Edit, written: ReadBack, base: Mapping[str, str] | None = None) -> Self:
        """The receipt of a folder that has just been written and read back; `base` as in `Receipt`."""
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
        return cls(
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
            adapter=None if source.adapter is None else source.adapter.digests(),
            base=None if base is None else dict(base),
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Raises `TypeError` where a field is missing, unknown, or of another type."""
        tensors = {name: ChangedTensor(**tensor) for name, tensor in content["tensors"].items()}
        files = {name: WrittenFile(**file) for name, file in content["files"].items()}
        receipt = cls(**{**content, "tensors": tensors, "files": files})
        parts: tuple[Receipt | ChangedTensor | WrittenFile, ...] = (receipt, *tensors.values(), *files.values())
        for part in parts:
            _check_types(part)
        return receipt

    def to_json(self) -> dict[str, Any]:
        """As stored, and as the next receipt keeps it: that of a plain edit is as it was before there were adapters."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in _OPTIONAL}


def _check_types(part: Receipt | ChangedTensor | WrittenFile) -> None:
    """Raise `TypeError` where a field is not of the type it is declared with: what JSON holds may be anything."""
    for name, kind in get_type_hints(type(part)).items():
        value = getattr(part, name)
        kinds = [get_origin(one) or one for one in (get_args(kind) if isinstance(kind, UnionType) else (kind,))]
        if isinstance(value, bool) or not isinstance(value, tuple(kinds)):
            raise TypeError(name)
        if isinstance(value, list) and any(type(number) is not int for number in value):  # a shape, the only list
            raise TypeError(name)


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Write `receipt` into the folder, over one that is there."""
    (folder / RECEIPT).write_bytes(_text(receipt))


def has_receipt(folder: Path) -> bool:
    """Whether there is one, whatever is in it."""
    return (folder / RECEIPT).exists()


def stored_receipt(folder: Path) -> dict[str, Any] | None:
    """The receipt in a folder as the next one keeps it; None where there is none. Raises as `read_receipt` does."""
    return read_receipt(folder).to_json() if has_receipt(folder) else None


def read_receipt(folder: Path) -> Receipt:
    """The receipt in a folder.

    Raises:
        InputError: there is none, it cannot be read, or it is not byte for byte as chip writes it: damaged, or changed
            by hand.
    """
    if not has_receipt(folder):
        check_not_half_replaced(folder)
        raise InputError(f"{folder}: no {RECEIPT} here; give a folder that `chip edit` has written")
    with open_inside(folder, RECEIPT) as file:
        text = file.read(LONGEST)
    try:
        content = json.loads(text)
        receipt = Receipt.from_json({name: content[name] for name in content if name != "digest"})
        whole = receipt.receipt == _FORMAT and _text(receipt) == text
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # not JSON, or of another format
        whole = False
    if not whole:
        raise InputError(
            f"{folder / RECEIPT}: damaged, or changed by hand; take the folder again from where it was made"
        )
    return receipt


def _text(receipt: Receipt) -> bytes:
    """As stored. The digest at the end finds what happens by accident, not what somebody has made to fit."""
    content = receipt.to_json()
    digest = hashlib.sha256(_json(content)).hexdigest()
    return _json({**content, "digest": digest}) + b"\n"


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode()
