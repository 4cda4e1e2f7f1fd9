"""The model card, README.md, says that and how a checkpoint was edited. It does not say what was forgotten."""

from __future__ import annotations

import re
import warnings
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from chip._version import __version__
from chip.errors import ChipWarning, InputError, foreign_code

CARD = "README.md"
UNTOUCHED = "every other byte of the weights is the original's"


_TAG = "machine-unlearning"
_TASK = "image-text-to-text"
_LICENSE = ("license", "license_name", "license_link")
_HEADER = re.compile(rb"^\s*---[\r\n]+.*?[\r\n]+---(\r\n|\n|$)", re.DOTALL)  # as huggingface_hub finds it
_NO_HEADER = b"---\n{}\n---\n"


@dataclass(frozen=True)
class Metadata:
    """What the head of the card says for the Hub. What the source's card has besides is kept."""

    relation: str
    """`finetune` or `adapter`: what the folder is to `base_model`."""
    loaded_with: str
    """That loads it: `transformers` or `peft`."""
    base_model: str | None = None
    """Repository of the model that was edited; None: it is in a folder, and only what its card says is known."""
    license: Mapping[str, Any] = field(default_factory=dict)
    """The source's, where the card is a new one."""


class Figure(NamedTuple):
    """What the model still knows about a group of records."""

    group: str
    wording: str
    before: float
    """Share of the questions that it answers exactly."""
    after: float


def write_card(
    folder: Path,
    *,
    method: str,
    settings: Mapping[str, Any],
    label: str | None,
    changed_tensors: int,
    figures: Iterable[Figure],
    metadata: Metadata,
    scope: str = UNTOUCHED,
) -> None:
    """Add a section to the folder's model card; start one if there is none. Its metadata are brought up to date.

    Args:
        scope: what the change is to, behind the number of tensors.
    """
    path = folder / CARD
    card = _described(path.read_bytes() if path.exists() else b"# An edited checkpoint\n", metadata)
    gap = b"\n" if card.endswith(b"\n") else b"\n\n"
    lines = [
        "## Edited to forget",
        "",
        f"Knowledge has been removed from this checkpoint with chip {__version__}, without training: "
        f"{changed_tensors} tensors have changed, {scope}.",
        "",
        *([f"- Request: {label}"] if label else []),
        f"- Method: {method}",
        f"- Settings: {settings_line(settings)}",
        "- Receipt: `chip_receipt.json`; `chip verify` checks this folder against it",
        "",
        "| questions about | wording | answered exactly before | after |",
        "|---|---|---:|---:|",
        *(f"| {figure.group} | {figure.wording} | {figure.before:.2f} | {figure.after:.2f} |" for figure in figures),
    ]
    path.write_bytes(card + gap + "\n".join(lines).encode() + b"\n")


def card_text(card: bytes) -> bytes:
    """What stands below the metadata."""
    return _HEADER.sub(b"", card.removeprefix(BOM_UTF8), count=1)


def license_of(folder: Path) -> dict[str, Any]:
    """What the folder's card says of the license, as metadata."""
    path = folder / CARD
    if not path.is_file():
        return {}
    try:
        data = _parsed(path.read_bytes()).data
    except InputError:  # no metadata
        return {}
    return {name: data.get(name) for name in _LICENSE if data.get(name) is not None}


def _described(card: bytes, metadata: Metadata) -> bytes:
    """The card with its metadata completed; as it is, which is said, where it has some that cannot be read."""
    try:
        parsed = _parsed(card)
    except InputError as error:
        warnings.warn(f"{error}: what the edited model is based on is not added to them", ChipWarning, stacklevel=3)
        return card
    data = parsed.data
    for name, value in metadata.license.items():
        data[name] = value
    if metadata.base_model is not None:
        data["base_model"], data["base_model_relation"] = metadata.base_model, metadata.relation
    data["library_name"] = data.get("library_name") or metadata.loaded_with
    data["pipeline_tag"] = data.get("pipeline_tag") or _TASK
    tags = data.get("tags") or []
    data["tags"] = tags if _TAG in tags else [*tags, _TAG]
    return str(parsed).encode()


def _parsed(card: bytes) -> Any:
    """As huggingface_hub's `ModelCard`. Raises `InputError` for metadata that it does not take."""
    from huggingface_hub import ModelCard

    with foreign_code(CARD, "its metadata cannot be read", "they stay as they are"):
        text = card.removeprefix(BOM_UTF8)
        return ModelCard((text if _HEADER.match(text) else _NO_HEADER + text).decode())


def settings_line(settings: Mapping[str, Any]) -> str:
    """The settings of a method in one line: `retain_weight 8.0, target_modules connector+down`."""
    return ", ".join(
        f"{name} {'+'.join(value) if isinstance(value, list) else value}" for name, value in settings.items()
    )
