"""A base checkpoint with a LoRA adapter merged into it, by PEFT and in fp32, one tensor at a time when it is asked for.

So no merged model lies anywhere, neither in memory nor on the disk: what loads or writes the checkpoint takes the
merged tensors in the places of the stored ones.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from chip.checkpoint.adapter import Adapter, check_no_adapter_inside, find_base, holds_adapter
from chip.checkpoint.config_checks import find_scheme
from chip.checkpoint.hub import checkpoint_folder
from chip.checkpoint.layout import ADAPTER_CONFIG, CONFIG, Checkpoint
from chip.checkpoint.paths import counted, hub_name, input_error, listed, quoted
from chip.checkpoint.plain import open_plain
from chip.checkpoint.writer import round_once
from chip.errors import ChipWarning, InputError
from chip.model.adapter_names import PREFIX, in_own_names
from chip.model.loading_options import LoadingOptions
from chip.model.quiet import refusing
from chip.model.skeleton import build_skeleton
from chip.model.tensor_names import disk_names, key_map
from chip.progress import ProgressCallback, silent

_MERGED = frozenset(
    {
        *("r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    }
)
"""Settings of an adapter that say what the merged weights are, and that are followed."""
_WITHOUT_EFFECT = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "lora_dropout", "init_lora_weights", "runtime_config", "ensure_weight_tying"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
    }
)
"""Settings of the training, and of a start that is over: the trained values are in the file."""
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is; others take a part out of it first, as PiSSA does."""
_NAME = "default"
_HINT = "merge it with peft (merge_and_unload), and save the whole model"
_OTHER_BASE = "it belongs to another base, or to one with resized embeddings: give its own, or merge it there with peft"

_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Read = Callable[[str], Tensor]
"""The base's own value of a parameter, by the model's name."""
Merge = Callable[[Read], Tensor]
"""The value of one parameter with the adapter merged."""


def open_checkpoint(
    model: Path | str,
    adapter: Path | str | None = None,
    base: Path | str | None = None,
    revision: str | None = None,
    *,
    rounded: bool = True,
    progress: ProgressCallback = silent,
) -> Checkpoint:
    """The checkpoint in a folder, dequantized where it is quantized; with an adapter, its base's as it is once the
    adapter is merged.

    Each may be the name of a repository on the Hub, as `checkpoint_folder` takes it.

    Args:
        model: folder of a checkpoint; or of an adapter alone, which belongs to `base`.
        adapter: folder of the adapter to merge into the checkpoint.
        base: folder of the adapter's base; by default the one that its `adapter_config.json` names.
        revision: of `model`, where that is a repository.
        rounded: merged tensors have the dtype they are stored in; else they stay in fp32, for an adapter to be made.

    Raises:
        InputError: as `checkpoint_folder`, `open_plain`, `Adapter.open`, `find_base` and `merge_adapter` do, and where
            the arguments contradict each other.
    """
    folder = checkpoint_folder(model, revision)
    if adapter is None and not holds_adapter(folder):
        if base is not None:
            message = "goes with an adapter, whose base it is; the model here is no adapter"
            raise InputError(message, argument="base", value=base)
        if not os.path.lexists(folder / CONFIG):
            check_no_adapter_inside(folder)
        return _opened(folder, rounded, progress)
    if adapter is None:
        opened = Adapter.open(folder)
        folder = find_base(opened) if base is None else checkpoint_folder(base, argument="base")
    elif base is not None:
        raise InputError("the model is the adapter's base; leave this out", argument="base", value=base)
    elif holds_adapter(folder):
        raise InputError("the model is an adapter itself; give the base of both", argument="adapter", value=adapter)
    else:
        opened = Adapter.open(checkpoint_folder(adapter, argument="adapter"))
    _warn_of_other_base(opened, folder)
    return merge_adapter(_opened(folder, rounded, progress), opened, rounded=rounded)


def open_with(
    model: Path | str, options: LoadingOptions, *, rounded: bool = True, progress: ProgressCallback = silent
) -> Checkpoint:
    """`open_checkpoint` with the adapter, base and revision that the options give."""
    given = options.get("adapter"), options.get("base"), options.get("revision")
    return open_checkpoint(model, *given, rounded=rounded, progress=progress)


def _opened(folder: Path, rounded: bool, progress: ProgressCallback) -> Checkpoint:
    if not rounded and find_scheme(Checkpoint.open(folder, quantized=True).config) is not None:
        message = f"{folder} is quantized, and the adapter would belong to its dequantized weights; save merged"
        raise InputError(message, argument="save", value="adapter")
    return open_plain(folder, progress)


def _warn_of_other_base(adapter: Adapter, folder: Path) -> None:
    """Where both have a name on the hub, and it is not one: tensors of another base may have the same shapes."""
    named, given = str(adapter.config.get("base_model_name_or_path")), hub_name(folder)
    if given is not None and "/" in named and not Path(named).is_absolute() and named.lower() != given.lower():
        message = f"{adapter.folder}: the adapter says that it belongs to {quoted(named)}, and is merged into {given}"
        warnings.warn(message, ChipWarning, stacklevel=3)


def merge_adapter(base: Checkpoint, adapter: Adapter, *, rounded: bool = True) -> Checkpoint:
    """`base` with the adapter merged: what a folder would hold if PEFT had merged it in fp32, and it was then saved.

    Every tensor of the adapter has its place, and every place its tensor, before anything is computed.

    Raises:
        InputError: peft is missing; a setting that changes the weights in a way that chip does not follow; a tensor of
            the adapter without a place in the model, or a place without a tensor, or of another shape; a changed
            parameter that is fused or tied, or has no tensor of its own on the disk.
    """
    check_installed()
    model = _with_adapter(base, adapter)
    merges = dict(_merges(model, adapter))
    names = disk_names(base, merges, "merge an adapter into", _HINT)
    return replace(base, adapter=adapter, merged=MergedTensors(base, merges, names, rounded))


def check_installed() -> None:
    """Raise `InputError` if peft is missing."""
    if find_spec("peft") is None:
        raise InputError("adapters need peft; pip install 'chip-unlearning[adapters]'", argument="adapter")


class MergedTensors(Mapping[str, Tensor]):
    """Name on disk -> tensor with the adapter merged, on the CPU. None is kept: each is merged when it is asked for."""

    def __init__(self, base: Checkpoint, merges: Mapping[str, Merge], names: Mapping[str, str], rounded: bool) -> None:
        """`merges` and `names`: the model's name of a parameter -> what computes it, and its name on disk."""
        self._base, self._names, self._rounded = base, names, rounded
        self._lock = Lock()  # PEFT merges in place, and warnings are silenced for all threads
        self._merges = {names[parameter]: merge for parameter, merge in merges.items()}

    def __getitem__(self, name: str) -> Tensor:
        with self._lock:
            value = self._merges[name](lambda parameter: self._base.read(self._names[parameter]))
        return round_once(value, self._base.entries[name].torch_dtype) if self._rounded else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._merges)

    def __len__(self) -> int:
        return len(self._merges)


def lora_config(adapter: Adapter, renamed: Mapping[str, Any]) -> Any:
    """The adapter's settings as PEFT has them.

    Args:
        renamed: those that take the place of others, as `in_own_names` gives them.

    Raises:
        InputError: one is set that changes the weights in another way than plain LoRA, rsLoRA or DoRA.
    """
    from peft import LoraConfig

    path, given = adapter.folder / ADAPTER_CONFIG, adapter.config
    plain = LoraConfig()
    known = {field.name for field in fields(LoraConfig)}
    for name, value in given.items():
        default = getattr(plain, name) if name in known else None
        if name not in _MERGED | _WITHOUT_EFFECT and value != default and (value or default):
            raise input_error(path, f"{quoted(name)} is set ({quoted(str(value))}), which chip does not merge", _HINT)
    if (start := given.get("init_lora_weights", True)) not in _PLAIN_STARTS:
        what = f"'init_lora_weights' is {quoted(str(start))}, which changes the base's own weights first"
        raise input_error(path, what, "save it with peft as plain LoRA (path_initial_model_for_weight_conversion)")
    settings = {name: value for name, value in given.items() if name in _MERGED}
    with refusing(path, "peft cannot follow it", "save the adapter again"):
        return LoraConfig(**{**settings, **renamed}, init_lora_weights=False, inference_mode=True)


def _with_adapter(base: Checkpoint, adapter: Adapter) -> Any:
    """The base's model with the adapter's layers in it and their trained values; the base's own weights take no memory.

    Raises:
        InputError: as `merge_adapter` does.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    skeleton = build_skeleton(base.folder, len(base.entries))
    names, renamed = in_own_names(skeleton, adapter)
    config = lora_config(adapter, renamed)
    _fill(skeleton)
    of_base = {id(value) for value in skeleton.parameters()}
    with refusing(adapter.folder, "peft cannot add it to this base", _OTHER_BASE):
        model = get_peft_model(skeleton, config, _NAME).eval()
    for name in _saved_along(base, adapter, model, names):
        del names[name]
    added = {name: value for name, value in model.named_parameters() if id(value) not in of_base}
    for value in added.values():
        value.data.fill_(torch.nan)  # to see what no tensor of the adapter fills
    with refusing(adapter.folder, "peft cannot load it into this base", _OTHER_BASE):
        result = set_peft_model_state_dict(model, {name: adapter.read(stored) for name, stored in names.items()}, _NAME)
    if unknown := sorted(result.unexpected_keys):
        what = f"{counted(unknown, 'tensor')} without a place in the model ({listed(unknown)})"
        raise input_error(adapter.folder, what, _OTHER_BASE)
    if lacking := sorted(name.removeprefix(PREFIX) for name, value in added.items() if value.isnan().any()):
        what = f"{counted(lacking, 'place')} without a value, or with one that is NaN ({listed(lacking)})"
        raise input_error(adapter.folder, what, "save the adapter again")
    return model.get_base_model()


def _saved_along(base: Checkpoint, adapter: Adapter, model: nn.Module, names: Mapping[str, str]) -> set[str]:
    """Those of the `names` that are weights of the base, which peft saves along with a change of embeddings.

    Raises:
        InputError: one is not as in the base.
    """
    along = names.keys() & model.state_dict().keys()
    disk = key_map(base) if along else {}
    for name in sorted(along):
        of_base = disk.get(name.removeprefix(PREFIX).replace(".base_layer.", "."))
        if of_base is None or not torch.equal(base.read(of_base).float(), adapter.read(names[name]).float()):
            what = f"holds a weight of the base, and not as that has it ({quoted(names[name])})"
            raise input_error(adapter.folder, what, _OTHER_BASE)
    return along


def _fill(skeleton: nn.Module) -> None:
    """Gives parameters of the meta device one zero each on the CPU in the place of all values: PEFT puts its layers
    where the base's weights are."""
    for module in skeleton.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros((), dtype=torch.float32).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))


def _merges(model: nn.Module, adapter: Adapter) -> Iterator[tuple[str, Merge]]:
    """Each parameter that the adapter changes, by the model's name, and what computes its value."""
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for name, value in module.modules_to_save[_NAME].state_dict().items():
                yield f"{path}.{name}", partial(_replaced, value)
        elif isinstance(module, LoraLayer):
            layer, names = module.base_layer, ("weight", "bias") if module.lora_bias[_NAME] else ("weight",)
            if not isinstance(layer, _LAYERS) or any(getattr(layer, name, None) is None for name in names):
                what = f"changes {' and '.join(names)} of {quoted(path)}, a {type(layer).__name__}"
                raise input_error(adapter.folder, what, _HINT)
            for name in names:
                yield f"{path}.{name}", partial(_merged, adapter, module, path, names, name)


def _replaced(value: Tensor, read: Read) -> Tensor:
    return value.clone()


@torch.no_grad()
def _merged(adapter: Adapter, module: Any, path: str, names: Sequence[str], name: str, read: Read) -> Tensor:
    """One of the layer's parameters, merged by PEFT. The layer holds the base's values only while that takes place."""
    layer = module.base_layer
    zeros = {each: getattr(layer, each).data for each in names}
    try:
        for each in names:
            getattr(layer, each).data = read(f"{path}.{each}").float()
        with refusing(adapter.folder, f"peft cannot merge {quoted(path)}", "save the adapter again"):
            module.merge(safe_merge=True)
        merged: Tensor = getattr(layer, name).data
    finally:
        module.merged_adapters.clear()
        for each in names:
            getattr(layer, each).data = zeros[each]
    return merged
