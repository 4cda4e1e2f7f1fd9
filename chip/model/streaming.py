"""A checkpoint as a model whose layers are read one after the other: `WeightStream`, and what it is made for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig

from chip.checkpoint.header import FLOATS
from chip.checkpoint.layout import Checkpoint
from chip.errors import ChipWarning
from chip.model.families import family_of, find_language, find_tower_layers, other_parts
from chip.model.forward.activation_store import host_memory
from chip.model.load_plan import LoadPlan, Origin
from chip.model.weight_stream import Unit, WeightStream

LEFT_FREE = 0.2
"""The part of the free memory that weights are not to take, if they are all to be in it."""


def needs_streaming(checkpoint: Checkpoint, plan: LoadPlan, dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether the model's weights take more of the memory that is free than they may; where they do, it is said."""
    entries = [checkpoint.entries[name] for name in plan.taken]
    stored = sum(entry.end - entry.begin for entry in entries)
    values = sum(torch.Size(entry.shape).numel() for entry in entries)
    size = stored if dtype is None else values * dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory()[0]
    if size <= (1 - LEFT_FREE) * free:
        return False
    message = (
        f"{checkpoint.folder}: its weights take {size / 1e9:.1f} GB, and {free / 1e9:.1f} are free; layers are read"
    )
    warnings.warn(f"{message} from the disk one after the other, and anew at each use", ChipWarning, stacklevel=2)
    return True


def load_streamed(
    checkpoint: Checkpoint, skeleton: Any, plan: LoadPlan, dtype: torch.dtype | None, device: torch.device
) -> tuple[Any, WeightStream]:
    """The model on `device`, without the weights that are streamed, and what streams them.

    Args:
        skeleton: the same model on the meta device.
        dtype: to compute in; None: as stored.
    """
    parts = _Parts.of(skeleton, plan)
    later = parts.names
    state = {
        name: _Later(checkpoint.entries[name].shape) if name in later else _Now(partial(checkpoint.read, name))
        for name in plan.taken
    }
    config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    model = type(skeleton).from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype or _dtype(config, checkpoint),
        trust_remote_code=False,
    )
    if (checkpoint.folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    for module in model.modules():
        _move(module, device)
    model.name_or_path = str(checkpoint.folder)
    return model, WeightStream(model, checkpoint, parts.units, parts.embeddings, parts.ties, device)


@dataclass(frozen=True)
class _Parts:
    """What of a model is streamed."""

    units: tuple[Unit, ...]
    embeddings: Mapping[str, Origin]
    ties: Mapping[str, str]

    @property
    def names(self) -> set[str]:
        """On disk."""
        origins = (*self.embeddings.values(), *(origin for unit in self.units for origin in unit.origins))
        return {name for origin in origins for name in origin.names}

    @classmethod
    def of(cls, skeleton: Any, plan: LoadPlan) -> _Parts:
        """The layers of the vision tower, of the text model and of what stands beside them, the head, and the text
        model's tables of embeddings, where the family does no more than look tokens up in them. Not what lacks a tensor
        on disk."""
        origin_of = {name: origin for origin in plan.origins for name in origin.parameters}
        ties = _ties(skeleton, origin_of)
        paths = {module: path for path, module in skeleton.named_modules()}
        language, layers = find_language(skeleton), find_tower_layers(skeleton)

        def units(modules: Iterable[nn.Module]) -> Iterator[Unit]:
            for module in modules:
                names = [f"{paths[module]}.{name}" for name, _ in module.named_parameters(remove_duplicate=False)]
                origins = [origin_of.get(ties.get(name, name)) for name in names]
                if None not in origins:
                    yield Unit(paths[module], tuple(dict.fromkeys(each for each in origins if each is not None)))

        beside = [layer for part in other_parts(skeleton) for layer in _layers(skeleton.get_submodule(part))]
        of_layers = tuple(units((*beside, *layers, *language.layers)))
        if family_of(skeleton).takes_embeddings_apart:
            return cls(of_layers, {}, ties)
        tables = {
            path: module
            for module, path in paths.items()
            if isinstance(module, nn.Embedding) and path.startswith(paths[language]) and ".layers." not in path
        }
        origins = {path: origin_of.get(ties.get(f"{path}.weight", f"{path}.weight")) for path in tables}
        by_row = {path: each for path, each in origins.items() if each is not None and each.converter is None}
        whole = [module for path, module in tables.items() if path not in by_row]
        return cls((*units(whole), *of_layers, *units([skeleton.get_output_embeddings()])), by_row, ties)


def _ties(skeleton: Any, origin_of: Mapping[str, Origin]) -> dict[str, str]:
    """Parameter without a tensor on disk -> one that is tied to it and has one; none where both have one."""
    groups: dict[str, list[str]] = {}
    for target, source in skeleton.all_tied_weights_keys.items():
        groups.setdefault(source, [source]).append(target)
    ties: dict[str, str] = {}
    for group in groups.values():
        stored = next((name for name in group if name in origin_of), None)
        ties |= {name: stored for name in group if stored is not None and name not in origin_of}
    return ties


def _layers(module: nn.Module) -> list[nn.Module]:
    """The members of the lists in a module, of nested ones those of the outer."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [layer for child in module.children() for layer in _layers(child)]


class _Now:
    """A tensor as transformers' loader takes it, read when the loader wants it."""

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read

    def __getitem__(self, _: object) -> Tensor:
        return self._read()


class _Later:
    """A tensor of which the loader gets no more than the shape, wherever it wants to put it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def __getitem__(self, _: object) -> _Later:
        return self

    def to(self, *, dtype: torch.dtype, **_: object) -> Tensor:
        return torch.empty(self._shape, dtype=dtype, device="meta")


def _dtype(config: Any, checkpoint: Checkpoint) -> torch.dtype:
    """As transformers takes `auto`: what the configuration says, else as the first weight is stored."""
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    return next(entry.torch_dtype for entry in checkpoint.entries.values() if entry.dtype in FLOATS)


def _move(module: nn.Module, device: torch.device) -> None:
    """The module's own parameters and buffers to the device, but for those on the meta device."""
    for name, parameter in module.named_parameters(recurse=False):
        if not parameter.is_meta:
            setattr(module, name, nn.Parameter(parameter.to(device), requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.to(device))
