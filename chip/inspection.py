"""What a checkpoint is, and which of its layers an edit would touch; no weights are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from chip.checkpoint.layout import Checkpoint
from chip.operators import OPERATORS
from chip.vlm.loading import skeleton
from chip.vlm.sites import Site, available_sites, find_language, layer_range


@dataclass(frozen=True)
class SiteRow:
    """All sites of one kind."""

    kind: str
    layers: str
    """`0-27`, or a dash in the connector."""
    count: int
    shapes: tuple[tuple[int, int], ...]
    """The different (d_out, d_in) among them."""
    edited_by: tuple[str, ...]
    """Operators that edit some of them by default, with the layers."""


@dataclass(frozen=True)
class Inspection:
    family: str
    architecture: str
    parameters: int
    dtypes: tuple[str, ...]
    shards: int
    sites: tuple[SiteRow, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect(checkpoint: Path | str) -> Inspection:
    """Look at a checkpoint folder.

    Raises:
        InputError: it is not one that chip can edit.
    """
    source = Checkpoint.open(Path(checkpoint))
    model = skeleton(source.folder)
    sites = available_sites(model)
    depth = len(find_language(model).layers)
    entries = source.entries.values()
    return Inspection(
        family=model.config.model_type,
        architecture=type(model).__name__,
        parameters=sum(prod(entry.shape) for entry in entries),
        dtypes=tuple(sorted({entry.dtype for entry in entries})),
        shards=len(source.shards),
        sites=tuple(_row(model, kind, [s for s in sites if s.kind == kind], depth) for kind in _kinds(sites)),
    )


def _kinds(sites: Iterable[Site]) -> list[str]:
    return list(dict.fromkeys(site.kind for site in sites))


def _row(model: Any, kind: str, sites: list[Site], depth: int) -> SiteRow:
    shapes = dict.fromkeys((d_out, d_in) for d_out, d_in in (site.weight(model).shape for site in sites))
    layers = [site.layer for site in sites if site.layer is not None]
    edited_by = []
    for name, operator in OPERATORS.items():
        if kind in operator.sites:
            span = layer_range(operator.layers, depth)
            edited_by.append(f"{name} {span.start}-{span.stop - 1}" if layers else name)
    return SiteRow(kind, f"{min(layers)}-{max(layers)}" if layers else "–", len(sites), tuple(shapes), tuple(edited_by))
