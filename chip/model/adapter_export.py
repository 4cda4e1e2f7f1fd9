"""An edit as an adapter that plain PEFT loads: low-rank factors of the change in linear layers, else whole modules."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chip.checkpoint.adapter import write_adapter
from chip.checkpoint.layout import Checkpoint
from chip.checkpoint.paths import counted, hub_name, listed
from chip.errors import ChipWarning, InputError
from chip.kernels.low_rank import low_rank_factors
from chip.model.adapter_names import PREFIX
from chip.model.skeleton import build_skeleton
from chip.model.tensor_names import key_map
from chip.progress import ProgressCallback, silent


def export_adapter(
    source: Checkpoint, folder: Path, tensors: Mapping[str, Tensor], progress: ProgressCallback = silent
) -> None:
    """Make `folder`: a LoRA adapter to the checkpoint in the folder of `source`, which makes of it what was edited.

    A linear layer of which the weight alone changes gets as many directions as its change has in fp32. Every other
    module that changes, such as one with a new bias, is in the adapter as a whole (`modules_to_save`); that is said.

    Args:
        tensors: name on disk -> new value, fp32 where nothing is to be lost. What an adapter merged into `source`
            changes belongs to it too.

    Raises:
        InputError: a module that would have to be in it as a whole has parameters without a tensor of their own.
    """
    base, skeleton = replace(source, adapter=None, merged={}), build_skeleton(source.folder)
    disk = key_map(source)
    changed = _changed_modules(disk, {*tensors, *source.merged})
    ranks: dict[str, int] = {}
    whole: list[str] = []
    weights: dict[str, Tensor] = {}
    with progress("factoring", len(changed)) as advance:
        for path, own in changed.items():
            if own == {"weight"} and isinstance(skeleton.get_submodule(path), nn.Linear):
                name = disk[f"{path}.weight"]
                down, up = _factors(base.read(name), tensors[name] if name in tensors else source.read(name))
                if len(down):
                    ranks[path] = len(down)
                    weights |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
            else:
                whole.append(path)
                weights |= _whole(path, skeleton.get_submodule(path), source, disk, tensors)
            advance(1)
    if whole:
        message = f"more than a linear layer's weight changes in {counted(whole, 'module')} ({listed(whole)})"
        warnings.warn(f"{message}: in the adapter as a whole", ChipWarning, stacklevel=2)
    prefixed = {f"{PREFIX}{name}": value.contiguous() for name, value in weights.items()}
    write_adapter(folder, _config(source, ranks, whole), prefixed)


def _changed_modules(disk: Mapping[str, str], names: Collection[str]) -> Mapping[str, set[str]]:
    """Module -> names, below it, of its parameters whose names on disk are among `names`."""
    changed: defaultdict[str, set[str]] = defaultdict(set)
    for parameter, name in disk.items():
        if name in names:
            module, _, own = parameter.rpartition(".")
            changed[module].add(own)
    return changed


def _factors(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """A (r, d_in) and B (d_out, r), fp32, with B A = new − old; what rounding to fp32 has brought in is left out.

    Rounding moves each value by ε/2 of it at most, at random: the largest singular value of such a matrix is about
    (√d_out + √d_in) times the size of a value.
    """
    new, old = new.cpu().double(), old.double()
    size = float(torch.linalg.norm(new)) / sqrt(new.numel())
    noise = torch.finfo(torch.float32).eps * size * (sqrt(new.shape[0]) + sqrt(new.shape[1]))
    up, down = low_rank_factors(new - old, noise)
    return down.float(), up.float()


def _whole(
    path: str, module: nn.Module, source: Checkpoint, disk: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All parameters of a module, new or as they are, by their names in the model; fp32."""
    names = [f"{path}.{own}" for own in module.state_dict()]
    if lacking := [name for name in names if name not in disk]:
        message = f"{path}: an adapter would have to hold it whole, and {listed(lacking)} has no tensor of its own"
        raise InputError(message, argument="save", value="adapter")
    values = {name: tensors.get(disk[name]) for name in names}
    return {name: (source.read(disk[name]) if value is None else value).cpu().float() for name, value in values.items()}


def _config(source: Checkpoint, ranks: Mapping[str, int], whole: list[str]) -> dict[str, Any]:
    """`adapter_config.json`. The scale, alpha / r, is 1 everywhere.

    The base is named as the hub does, or as the adapter before did: a path may be named after somebody.
    """
    from peft import LoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    most = max(ranks.values(), default=1)
    settings = LoraConfig(
        r=most,
        lora_alpha=most,
        target_modules=sorted(ranks) or DUMMY_TARGET_MODULES,
        rank_pattern={path: rank for path, rank in ranks.items() if rank != most},
        alpha_pattern={path: rank for path, rank in ranks.items() if rank != most},
        modules_to_save=whole or None,
        base_model_name_or_path=hub_name(source.folder),
        revision=hub_name(source.folder) and source.folder.name,
        inference_mode=True,
    ).to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
