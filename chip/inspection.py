"""What a checkpoint is, and which of its layers an edit would touch; no weights are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from chip.checkpoint.layout import Checkpoint
from chip.methods import METHODS
from chip.model.loading import skeleton
from chip.model.target_modules import TargetModule, available_modules, find_language, layer_range


@dataclass(frozen=True)
class TargetModuleRow:
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
    target_modules: tuple[TargetModuleRow, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect(checkpoint: Path | str) -> Inspection:
    """Look at a checkpoint folder.

    Raises:
        InputError: it is not one that chip can edit.
    """
    source = Checkpoint.open(Path(checkpoint))
    model = skeleton(source.folder)
    target_modules = available_modules(model)
    depth = len(find_language(model).layers)
    entries = source.entries.values()
    return Inspection(
        family=model.config.model_type,
        architecture=type(model).__name__,
        parameters=sum(prod(entry.shape) for entry in entries),
        dtypes=tuple(sorted({entry.dtype for entry in entries})),
        shards=len(source.shards),
        target_modules=tuple(
            _row(model, kind, [s for s in target_modules if s.kind == kind], depth) for kind in _kinds(target_modules)
        ),
    )


def _kinds(target_modules: Iterable[TargetModule]) -> list[str]:
    return list(dict.fromkeys(module.kind for module in target_modules))


def _row(model: Any, kind: str, target_modules: list[TargetModule], depth: int) -> TargetModuleRow:
    shapes = dict.fromkeys((d_out, d_in) for d_out, d_in in (module.weight(model).shape for module in target_modules))
    layers = [module.layer for module in target_modules if module.layer is not None]
    edited_by = []
    for name, method in METHODS.items():
        if kind in method.target_modules:
            span = layer_range(method.layers, depth)
            edited_by.append(f"{name} {span.start}-{span.stop - 1}" if layers else name)
    return TargetModuleRow(
        kind, f"{min(layers)}-{max(layers)}" if layers else "–", len(target_modules), tuple(shapes), tuple(edited_by)
    )
