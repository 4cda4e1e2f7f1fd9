"""The receipt that a folder holds, for a page that shows something of it: it may be of any form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip.checkpoint.receipt import LONGEST, RECEIPT

Pairs = list[tuple[str, str]]
"""Name, value."""
_FACTS = {"label": "Label", "method": "Method", "seed": "Seed", "created": "Made", "chip": "chip"}
_READ_BACK = ("files_read_back", "tensors_read_back", "untouched_bytes")


@dataclass(frozen=True)
class ShownReceipt:
    """What a page shows of a receipt, as far as it is there and what it should be."""

    facts: Pairs
    settings: Pairs
    read_back: Pairs
    hashed: int
    """Number of files."""
    changed_files: Pairs
    """Shards, with their SHA-256."""
    digest: str
    named: int
    """Tensors that it, with those of the edits before, names as changed; 0 where it has none itself."""
    confirmed: int
    """Of these, those that differ."""
    not_named: int
    """Tensors that differ, and that it does not name."""


def receipt_in(folder: Path) -> Mapping[str, Any] | None:
    """The receipt in a folder: None where there is none, empty where it cannot be read."""
    file = folder / RECEIPT
    if not file.is_file():
        return None
    if file.stat().st_size > LONGEST:
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):  # a page about the weights need not fail for it
        return {}
    return content if isinstance(content, dict) else {}


def shown_receipt(receipt: Mapping[str, Any], changed: Set[str]) -> ShownReceipt:
    """What a page shows of `receipt`, beside the names of the tensors that differ."""
    files = {name: file for name, file in _mapping(receipt, "files").items() if isinstance(file, dict)}
    facts = [(title, str(receipt[key])) for key, title in _FACTS.items() if receipt.get(key) is not None]
    earlier = list(_earlier(receipt))
    if earlier:
        facts.append(("Edits before this one", ", ".join(str(edit.get("method", "unknown")) for edit in earlier)))
    tensors = [_mapping(edit, "tensors") for edit in (receipt, *earlier)]
    named = {name for names in tensors for name in names} if tensors[0] else set()
    read_back = {key: receipt[key] for key in _READ_BACK if key in receipt} | _mapping(receipt, "read_back")
    return ShownReceipt(
        facts,
        settings=list(flat_pairs(_mapping(receipt, "settings"))),
        read_back=list(flat_pairs(read_back)),
        hashed=len(files),
        changed_files=[
            (name, str(file.get("sha256", "")))
            for name, file in files.items()
            if name.endswith(".safetensors") and file.get("sha256") != file.get("source_sha256")
        ],
        digest=str(receipt.get("digest") or ""),
        named=len(named),
        confirmed=len(named & changed),
        not_named=len(changed - named),
    )


def _earlier(receipt: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    while isinstance(previous := receipt.get("previous"), dict):
        yield previous
        receipt = previous


def _mapping(receipt: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = receipt.get(key)
    return value if isinstance(value, dict) else {}


def flat_pairs(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as lines: name, value."""
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from flat_pairs(value, f"{name}, ")
        elif isinstance(value, list):
            yield name, ", ".join(map(_text, value))
        else:
            yield name, _text(value)


def _text(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.6g}"
        case None:
            return "–"
    return str(value)
