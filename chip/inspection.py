"""What a checkpoint is, and which of its modules an edit would change; no weights are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Unpack

from chip.checkpoint.contents import describe_left_out, folder_contents
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.paths import counted, listed
from chip.data.readers import RecordSource, find_source, read_records
from chip.distributed import DistributedContext
from chip.methods import find_methods
from chip.model.adapters import open_with
from chip.model.families import find_language
from chip.model.loading_options import LoadingOptions, check_keywords
from chip.model.model_loader import model_loader
from chip.model.skeleton import build_skeleton
from chip.model.target_modules import Component, TargetModule, available_modules
from chip.model.unreached import describe_unreached
from chip.sinks import LargestToken, largest_tokens


@dataclass(frozen=True)
class TargetModuleRow:
    """All target modules of one kind."""

    kind: str
    component: Component
    layers: str
    """`0-27`, of the text model or of the vision tower; a dash in the connector."""
    count: int
    shapes: tuple[tuple[int, int], ...]
    """The different (d_out, d_in) among them."""
    edited_by: tuple[str, ...]
    """Methods that edit some of them by default, with the layers."""


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is."""

    family: str
    """`model_type` of its configuration."""
    architecture: str
    """The class that transformers loads."""
    parameters: int
    dtypes: tuple[str, ...]
    shards: int
    target_modules: tuple[TargetModuleRow, ...]
    """In the order of data."""
    notes: tuple[str, ...] = ()
    """What an edit does not reach, and what a copy leaves out: a line each."""
    largest_tokens: tuple[LargestToken, ...] = ()
    """Of each module that the default method edits, where records were given to look at."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect(
    checkpoint: Path | str,
    records: Path | str | RecordSource | None = None,
    **options: Unpack[LoadingOptions],
) -> Inspection:
    """Look at a checkpoint folder.

    Args:
        checkpoint: the folder, that of a LoRA adapter alone, or a repository on the Hub.
        records: a few of these pass through the model, to see the attention sinks in it; without, no weights are read.
        options: see `LoadingOptions`: an adapter, and where the model runs.

    Raises:
        InputError: it is not one that chip can edit, or the records cannot be read.
    """
    check_keywords("inspect", LoadingOptions, options)
    source = open_with(checkpoint, options)
    model = build_skeleton(source.folder, len(source.entries))
    notes = [*_quantized_note(source), *_adapter_note(source), *describe_unreached(source, model)]
    if left_out := folder_contents(source).left_out:
        notes.append(describe_left_out(left_out))
    by_kind: defaultdict[str, list[TargetModule]] = defaultdict(list)
    for module in available_modules(model):
        by_kind[module.kind].append(module)
    entries = source.entries.values()
    return Inspection(
        family=model.config.model_type,
        architecture=type(model).__name__,
        parameters=sum(prod(entry.shape) for entry in entries),
        dtypes=tuple(sorted({entry.dtype for entry in entries})),
        shards=len(source.shards),
        notes=tuple(notes),
        target_modules=tuple(_row(model, kind, modules) for kind, modules in by_kind.items()),
        largest_tokens=() if records is None else tuple(_largest_tokens(source, records, options)),
    )


def _largest_tokens(
    source: Checkpoint, records: Path | str | RecordSource, options: LoadingOptions
) -> list[LargestToken]:
    few = read_records(find_source(source.place, records, source.given))
    with model_loader(DistributedContext(), options) as load:
        return largest_tokens(load(source), few)


def _quantized_note(source: Checkpoint) -> Iterator[str]:
    if source.quantized is not None:
        yield f"quantized ({source.quantized.scheme}): what is shown, edited and written is dequantized to bf16"


def _adapter_note(source: Checkpoint) -> Iterator[str]:
    if source.adapter is not None:
        files = list(source.adapter.processor_files)
        own = f"its own processor files ({listed(files)})" if files else "no processor files, so the base's are used"
        yield f"an adapter is merged into the base: {counted(list(source.merged), 'tensor')} changed, {own}"


def _row(model: Any, kind: str, modules: Sequence[TargetModule]) -> TargetModuleRow:
    layers = [module.layer for module in modules if module.layer is not None]
    shapes = dict.fromkeys(module.shape(model) for module in modules)
    return TargetModuleRow(
        kind=kind,
        component=modules[0].component,
        layers=f"{min(layers)}-{max(layers)}" if layers else "–",
        count=len(modules),
        shapes=tuple(shapes),
        edited_by=tuple(_edited_by(kind, modules[0].component, len(find_language(model).layers))),
    )


def _edited_by(kind: str, component: Component, depth: int) -> Iterator[str]:
    """Methods whose default is to edit this kind; with their layers, in a text model of `depth` layers."""
    for name, method in find_methods().items():
        steps = [step for step in method().steps if kind in step.target_modules]
        layers = sorted({layer for step in steps for layer in step.default_layers(depth)})
        if steps:
            near = layers == list(range(layers[0], layers[-1] + 1))
            shown = f"{layers[0]}-{layers[-1]}" if near else ",".join(map(str, layers))
            yield f"{name} {shown}" if component is Component.TEXT else name
