"""The model card, README.md, says that and how a checkpoint was edited. It does not say what was forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from chip._version import __version__

CARD = "README.md"
UNTOUCHED = "every other byte of the weights is the original's"


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
    scope: str = UNTOUCHED,
) -> None:
    """Add a section to the folder's model card; start one if there is none.

    Args:
        scope: what the change is to, behind the number of tensors.
    """
    path = folder / CARD
    card = path.read_bytes() if path.exists() else b"# An edited checkpoint\n"
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


def settings_line(settings: Mapping[str, Any]) -> str:
    """The settings of a method in one line: `retain_weight 8.0, target_modules connector+down`."""
    return ", ".join(
        f"{name} {'+'.join(value) if isinstance(value, list) else value}" for name, value in settings.items()
    )
