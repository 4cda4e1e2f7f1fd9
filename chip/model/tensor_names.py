"""Which tensor on disk is which parameter of the module: transformers renames most of them while loading."""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from chip.checkpoint.layout import Checkpoint
from chip.errors import InputError
from chip.model.skeleton import build_skeleton


def key_map(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Module parameter name to name on disk, for every parameter that is loaded from one tensor as it is.

    Parameters are those of the class that `AutoModelForImageTextToText` loads, which is built on the meta
    device: no weights are read. Left out are parameters that loading fuses, splits or transposes, and tensors
    that no parameter takes. Raises `InputError` where transformers' own code has no model for `config.json`.
    """
    return _one_to_one(checkpoint, build_skeleton(checkpoint.folder))


def disk_names(checkpoint: Checkpoint, parameters: Iterable[str]) -> dict[str, str]:
    """Names on disk of `parameters`, each of which can be edited there without touching another.

    Raises `InputError` naming every one that is no parameter of the model, is not stored one to one, or is
    tied to another.
    """
    model = build_skeleton(checkpoint.folder)
    names = _one_to_one(checkpoint, model)
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ties: dict[str, str] = model.all_tied_weights_keys
    tied = ties | {source: target for target, source in ties.items()}

    def fault(parameter: str) -> str | None:
        if parameter not in known:
            return f"{parameter!r} is no parameter of {type(model).__name__}"
        if parameter in tied:
            return f"{parameter!r} is tied to {tied[parameter]!r}"
        if parameter not in names:
            return f"{parameter!r} has no tensor of its own on disk (missing, fused or converted)"
        return None

    requested = list(parameters)
    if faults := [message for parameter in requested if (message := fault(parameter))]:
        raise InputError(f"{checkpoint.folder}: cannot edit {'; '.join(faults)}; choose other layers")
    return {parameter: names[parameter] for parameter in requested}


def _one_to_one(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, str]:
    """What transformers' loader does with each name, less the loading."""
    expected: dict[str, torch.Tensor] = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    prefix = model.base_model_prefix
    targets: dict[str, str] = {}  # name on disk -> parameter
    converted: set[str] = set()  # names on disk that a converter takes
    for name in checkpoint.entries:
        target, converter = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected and name in expected:  # the name is already the module's
            target, converter = rename_source_key(name, [], [], prefix, expected)
        if target in expected:
            targets[name] = target
        if converter is not None:
            converted.add(name)
    takers = Counter(targets.values())
    return {
        target: name
        for name, target in targets.items()
        if takers[target] == 1
        and name not in converted
        and tuple(expected[target].shape) == checkpoint.entries[name].shape
    }
